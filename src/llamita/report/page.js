// Shows the values of named curves under the pointer. The page is complete without this script.
"use strict";
const clock = (s) => {
  const t = Math.max(0, Math.round(s)), h = Math.floor(t / 3600), m = Math.floor(t / 60) % 60, two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(t % 60)}` : `${m}:${two(t % 60)}`;
};
const count = (v) => {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (v >= size) return (v / size).toPrecision(4) + letter;
  return v.toFixed(0);
};
const number = (v) => (v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(2) : v.toPrecision(4));
const formats = { number, count, seconds: clock, percent: (v) => (100 * v).toFixed(1) + " %" };
const toValue = (scale, pixel) => {
  const [low, high, start, end, isLog] = scale, share = (pixel - start) / (end - start);
  return isLog ? low * Math.pow(high / low, share) : low + share * (high - low);
};
for (const plot of document.querySelectorAll("svg.plot")) {
  const figure = plot.closest("figure"), scales = ["x", "y"].map((n) => plot.dataset[n].split(" ").map(Number));
  const [xFormat, yFormat] = plot.dataset.formats.split(" ").map((n) => formats[n]);
  const lines = [...plot.querySelectorAll("polyline[data-name]")].map((line) => ({
    name: line.dataset.name, color: [...line.classList].find((c) => /^c\d$/.test(c)),
    points: line.getAttribute("points").split(" ").map((p) => p.split(",").map(Number)),
  }));
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path"), tip = document.createElement("div");
  cursor.setAttribute("class", "cursor");
  tip.className = "tip";
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), x = (event.clientX - box.left) * plot.viewBox.baseVal.width / box.width;
    const [, , left, right] = scales[0];
    if (x < left || x > right || !lines.length) return leave();
    const near = (points) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    const reaches = ({ points }) => x > points[0][0] - 12 && x < points[points.length - 1][0] + 12;
    const found = lines.filter(reaches).map((line) => ({ ...line, at: near(line.points) }));
    if (!found.length) return leave();
    const at = found.reduce((a, b) => (Math.abs(b.at[0] - x) < Math.abs(a.at[0] - x) ? b : a)).at[0];
    cursor.setAttribute("d", `M${at} ${scales[1][3]}V${scales[1][2]}`);
    plot.append(cursor);
    tip.replaceChildren(xFormat(toValue(scales[0], at)));
    for (const line of found) {
      const row = document.createElement("div"), key = document.createElement("span");
      key.className = `key ${line.color}`;
      row.append(key, `${line.name} ${yFormat(toValue(scales[1], line.at[1]))}`);
      tip.append(row);
    }
    figure.append(tip);
    const place = event.clientX - figure.getBoundingClientRect().left;
    tip.style.left = `${place + 14 + tip.offsetWidth > figure.offsetWidth ? place - 14 - tip.offsetWidth : place + 14}px`;
  });
  const leave = () => { cursor.remove(); tip.remove(); };
  plot.addEventListener("pointerleave", leave);
}
