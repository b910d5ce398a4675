"""How PyTorch's threads wait for one another, as GNU OpenMP says it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("torch")
CODE = "import sys; from llamita.cli import main; main(['--version']); assert 'torch' not in sys.modules; import torch"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")],
)
def test_spinning_is_limited_unless_the_user_says(variables: dict[str, str], expected: str) -> None:
    given = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=given | {"OMP_DISPLAY_ENV": "VERBOSE"} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if found is None:
        pytest.skip("this PyTorch does not use GNU OpenMP")
    assert found[1] == expected
