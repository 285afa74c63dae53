"""Makes a program of llama.cpp's bicubic resize, for `cargo xtask bench dataload --llama-resize`.

    python build_llama_resize.py llama.cpp/tools/mtmd/mtmd-image.cpp llama-resize

The function `resize_pillow` is private to that file. It is copied out of it, with just enough around it to compile, and
built with `-O3 -march=native`. The program is called as bench_resize.py is:

    llama-resize --rgb 12mp.rgb --from 4032x3024 --to 1024x1024 --out resized.rgb [--repetitions 9]

Needs a C++ compiler: `$CXX`, or else `c++`.
"""

import argparse
import os
import subprocess
import sys

BEFORE = r"""
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#define GGML_ASSERT(x) do { if (!(x)) throw std::runtime_error(#x); } while (0)
enum resize_algo { RESIZE_ALGO_BILINEAR, RESIZE_ALGO_BICUBIC, RESIZE_ALGO_LANCZOS };
struct clip_image_size { int width, height; };
struct clip_image_u8 {
    clip_image_size size{};
    std::vector<uint8_t> buf;
    clip_image_size get_size() const { return size; }
    void set_size(clip_image_size s, bool) { size = s; buf.resize((size_t) s.width * s.height * 3); }
    const std::vector<uint8_t> & get_ro_buf() const { return buf; }
    void cpy_buf(const std::vector<uint8_t> & b) { buf = b; }
};
struct img_tool {
"""

AFTER = r"""
};
static int size(const char * text, int * w, int * h) { return sscanf(text, "%dx%d", w, h) == 2; }
int main(int argc, char ** argv) {
    std::string rgb, out;
    int w = 0, h = 0, to_w = 0, to_h = 0, repetitions = 9;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--rgb") rgb = argv[i + 1];
        if (name == "--out") out = argv[i + 1];
        if (name == "--from" && !size(argv[i + 1], &w, &h)) return 2;
        if (name == "--to" && !size(argv[i + 1], &to_w, &to_h)) return 2;
        if (name == "--repetitions") repetitions = std::stoi(argv[i + 1]);
    }
    clip_image_u8 from, to;
    from.set_size({w, h}, false);
    std::ifstream file(rgb, std::ios::binary);
    file.read((char *) from.buf.data(), from.buf.size());
    if ((size_t) file.gcount() != from.buf.size() || repetitions < 1) {
        fprintf(stderr, "error: the picture has another size\n");
        return 1;
    }
    std::vector<double> seconds;
    for (int i = 0; i <= repetitions; i++) {
        auto start = std::chrono::steady_clock::now();
        img_tool::resize_pillow(from, to, to_w, to_h, RESIZE_ALGO_BICUBIC);
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    seconds.erase(seconds.begin());
    std::sort(seconds.begin(), seconds.end());
    std::ofstream(out, std::ios::binary).write((const char *) to.buf.data(), to.buf.size());
    printf("{\"metric\": \"resize\", \"seconds\": %.9f}\n", seconds[seconds.size() / 2]);
}
"""


def function(source: str) -> str:
    """The text of `resize_pillow`, to the brace that closes it."""
    start = source.find("static bool resize_pillow(")
    if start < 0:
        sys.exit("error: no resize_pillow in that file: this llama.cpp is too old or too new")
    depth, at = 0, source.index("{", start)
    for at in range(at, len(source)):
        depth += {"{": 1, "}": -1}.get(source[at], 0)
        if depth == 0:
            break
    return source[start : at + 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="MTMD_IMAGE_CPP")
    parser.add_argument("program", metavar="OUT")
    args = parser.parse_args()

    with open(args.source) as file:
        program = BEFORE + function(file.read()) + AFTER
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++17", "-O3", "-march=native", "-x", "c++", "-o", args.program, "-"]
    sys.exit(subprocess.run(command, input=program.encode()).returncode)


if __name__ == "__main__":
    main()
