# Builds the engine for another system with zig's C compiler (PyPI: ziglang):
#   cmake -S engine -B build/x -DCMAKE_TOOLCHAIN_FILE=engine/zig.cmake -DZIG=zig -DZIG_TARGET=aarch64-linux-musl
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ZIG_TARGET)
set(ZIG zig CACHE FILEPATH "The program zig")
set(ZIG_TARGET x86_64-linux-musl CACHE STRING "zig's name of a system: PROCESSOR-SYSTEM-ABI")

string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR ${ZIG_TARGET})
if(ZIG_TARGET MATCHES "windows")
  set(CMAKE_SYSTEM_NAME Windows)
elseif(ZIG_TARGET MATCHES "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
elseif(ZIG_TARGET MATCHES "wasi")
  set(CMAKE_SYSTEM_NAME WASI)
  set(WASI TRUE)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()

set(CMAKE_C_COMPILER ${ZIG} cc -target ${ZIG_TARGET})
set(CMAKE_RC_COMPILER ${ZIG}) # CMake looks for one; nothing uses it
set(CMAKE_EXE_LINKER_FLAGS_INIT -s) # zig links its C library with debug information
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(LLAMITA_DOTPROD_FLAG -mcpu=generic+dotprod)
