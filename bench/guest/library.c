/*
 * CPU rows that run other people's real code, linked statically: zlib, zstd, Lua, TinyCC, and GCC's compiler
 * proper as a program of its own.
 */
#include "bench.h"

#include <libtcc.h>
#include <lua5.4/lauxlib.h>
#include <lua5.4/lua.h>
#include <lua5.4/lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

static uint64_t run_gzip(void)
{
    size_t size = 2 << 20;
    uint64_t rounds = bench_scaled(4), sum = 0;
    char *text = malloc(size), *back = malloc(size);
    uLong bound = compressBound(size);
    Bytef *packed = malloc(bound);
    if (!text || !back || !packed) {
        bench_fail("memory");
    }
    bench_text(text, size);
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        uLongf packed_size = bound, back_size = size;
        text[r] ^= 1;
        if (compress2(packed, &packed_size, (Bytef *)text, size, 6) != Z_OK) {
            bench_fail("deflate");
        }
        if (uncompress((Bytef *)back, &back_size, packed, packed_size) != Z_OK || back_size != size) {
            bench_fail("inflate");
        }
        sum += packed_size + crc32(0, packed, (uInt)packed_size);
    }
    bench_stop();
    if (memcmp(text, back, size) != 0) {
        bench_fail("data differs");
    }
    return sum;
}

static uint64_t run_zstd(void)
{
    size_t size = 4 << 20, bound = ZSTD_compressBound(size);
    uint64_t rounds = bench_scaled(6), sum = 0;
    char *text = malloc(size), *back = malloc(size), *packed = malloc(bound);
    if (!text || !back || !packed) {
        bench_fail("memory");
    }
    bench_text(text, size);
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        text[r] ^= 1;
        size_t packed_size = ZSTD_compress(packed, bound, text, size, 3);
        if (ZSTD_isError(packed_size) || ZSTD_decompress(back, size, packed, packed_size) != size) {
            bench_fail("zstd");
        }
        sum += packed_size;
    }
    bench_stop();
    if (memcmp(text, back, size) != 0) {
        bench_fail("data differs");
    }
    return sum;
}

static const char lua_script[] =
    "local scale = ...\n"
    "local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end\n"
    "local sum = fib(20)\n"
    "if sum ~= 6765 then error('fib') end\n"
    "for round = 1, scale do\n"
    "  local sieve, count = {}, 0\n"
    "  for i = 2, 20000 do sieve[i] = true end\n"
    "  for i = 2, 20000 do\n"
    "    if sieve[i] then count = count + 1; for j = i * i, 20000, i do sieve[j] = false end end\n"
    "  end\n"
    "  if count ~= 2262 then error('sieve') end\n"
    "  local words = {}\n"
    "  for i = 1, 2000 do words[#words + 1] = string.format('%x-%d', i * 7919 % 65536, i) end\n"
    "  table.sort(words)\n"
    "  local text = table.concat(words, ' ')\n"
    "  for a, b in text:gmatch('(%x+)-(%d+)') do sum = (sum * 31 + #a + tonumber(b) + round) % 1000000007 "
    "end\n"
    "  local object = setmetatable({n = 0}, {__index = function(t, k) return k * 2 end})\n"
    "  for i = 1, 20000 do object.n = object.n + object[i % 100] end\n"
    "  sum = (sum + object.n + fib(18)) % 1000000007\n"
    "end\n"
    "return sum\n";

static uint64_t run_lua(void)
{
    lua_State *lua = luaL_newstate();
    if (!lua) {
        bench_fail("luaL_newstate");
    }
    luaL_openlibs(lua);
    bench_start();
    if (luaL_loadstring(lua, lua_script) != LUA_OK) {
        bench_fail("script does not load");
    }
    lua_pushinteger(lua, (lua_Integer)bench_scaled(30));
    if (lua_pcall(lua, 1, 1, 0) != LUA_OK) {
        bench_fail(lua_tostring(lua, -1));
    }
    bench_stop();
    uint64_t sum = (uint64_t)lua_tointeger(lua, -1);
    lua_close(lua);
    return sum;
}

/* A C source of `functions` functions, and main-like entry that calls them all. Returned string: caller
 * frees. */
static char *make_source(unsigned functions)
{
    size_t size = (size_t)functions * 900 + 4096, at = 0;
    char *src = malloc(size);
    if (!src) {
        bench_fail("memory");
    }
    uint64_t rng = 41;
    at += (size_t)snprintf(
        src + at, size - at,
        "# 1 \"x.c\"\ntypedef unsigned long u64;\nstruct pair { u64 key; int left, right; };\n");
    for (unsigned i = 0; i < functions; i++) {
        unsigned a = (unsigned)(bench_random(&rng) >> 50), b = (unsigned)(bench_random(&rng) >> 52) | 1;
        at += (size_t)snprintf(
            src + at, size - at,
            "static u64 work%u(struct pair *table, u64 count, u64 seed)\n{\n"
            "    u64 sum = seed * %uUL + %u, i;\n"
            "    for (i = 0; i < count; i++) {\n"
            "        struct pair *p = &table[i];\n"
            "        if (p->key %% %u == 0)\n            sum += (u64)p->left << (p->right & 15);\n"
            "        else if ((sum ^ p->key) & %u)\n            sum = sum * 33 + (u64)(p->left - p->right);\n"
            "        switch (sum & 7) {\n"
            "        case 0: p->key += i; break;\n        case 3: p->left ^= (int)sum; break;\n"
            "        case 5: p->right = p->left / %u; break;\n        default: sum ^= p->key >> 3;\n        "
            "}\n"
            "        while (sum > 1UL << 60)\n            sum -= sum >> 2;\n"
            "    }\n    return sum;\n}\n",
            i, a, b, b, a, b);
    }
    at += (size_t)snprintf(src + at, size - at,
                           "u64 entry(void)\n{\n    struct pair t[4] = { { 1, 2, 3 }, { 4, 5, 6 }, { 7, 8, 9 "
                           "}, { 10, 11, 12 } };\n"
                           "    u64 sum = 1;\n");
    for (unsigned i = 0; i < functions; i++) {
        at += (size_t)snprintf(src + at, size - at, "    sum = work%u(t, 4, sum);\n", i);
    }
    snprintf(src + at, size - at, "    return sum;\n}\n");
    return src;
}

static uint64_t run_tcc(void)
{
    char *src = make_source(500);
    uint64_t rounds = bench_scaled(20), sum = 0;
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        TCCState *tcc = tcc_new();
        if (!tcc) {
            bench_fail("tcc_new");
        }
        tcc_set_options(tcc, "-nostdlib -nostdinc");
        tcc_set_output_type(tcc, TCC_OUTPUT_MEMORY);
        if (tcc_compile_string(tcc, src) != 0 || tcc_relocate(tcc, TCC_RELOCATE_AUTO) != 0) {
            bench_fail("tcc compile");
        }
        uint64_t (*entry)(void);
        void *symbol = tcc_get_symbol(tcc, "entry");
        if (!symbol) {
            bench_fail("tcc symbol");
        }
        memcpy(&entry, &symbol, sizeof(entry));
        sum = sum * 31 + entry();
        tcc_delete(tcc);
    }
    bench_stop();
    free(src);
    return sum;
}

/* GCC's cc1 on a generated source: 33 MB of code, most of it run a few times. Its time includes start and
 * page-in. */
static uint64_t run_cc1(void)
{
    char in[256], out[256], loader[256], libs[256], cc1[256];
    snprintf(in, sizeof(in), "%s/bench-%d.i", bench_tmp(), getpid());
    snprintf(out, sizeof(out), "%s/bench-%d.s", bench_tmp(), getpid());
    snprintf(loader, sizeof(loader), "%s/lib/ld-linux-x86-64.so.2", bench_root());
    snprintf(libs, sizeof(libs), "%s/lib", bench_root());
    snprintf(cc1, sizeof(cc1), "%s/bin/cc1", bench_root());
    char *src = make_source((unsigned)bench_scaled(50));
    FILE *f = fopen(in, "w");
    if (!f || fputs(src, f) < 0 || fclose(f) != 0) {
        bench_fail("cannot write the source");
    }
    free(src);
    bench_start();
    pid_t pid = fork();
    if (pid == 0) {
        execl(loader, loader, "--library-path", libs, cc1, "-fpreprocessed", in, "-quiet", "-dumpbase", "x.c",
              "-mtune=generic", "-march=x86-64", "-O1", "-o", out, (char *)NULL);
        _exit(127);
    }
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
        bench_fail("cc1 failed");
    }
    bench_stop();
    f = fopen(out, "r");
    static char text[4 << 20];
    size_t size = f ? fread(text, 1, sizeof(text), f) : 0;
    if (f) {
        fclose(f);
    }
    unlink(in);
    unlink(out);
    if (size < 1000) {
        bench_fail("cc1 wrote nothing");
    }
    return bench_hash(text, size);
}

const struct bench_row bench_library_rows[] = {
    {"gzip", BENCH_CPU, run_gzip, NULL, "zlib, level 6, and back"},
    {"zstd", BENCH_CPU, run_zstd, NULL, "zstd, level 3, and back"},
    {"lua", BENCH_CPU, run_lua, NULL, "Lua 5.4: recursion, sieve, strings, sorting, metatables"},
    {"tcc", BENCH_CPU, run_tcc, NULL, "TinyCC compiles 10,000 lines to memory and the result runs"},
    {"cc1", BENCH_CPU, run_cc1, NULL, "GCC's cc1 -O1 on 1,000 lines, from exec to exit"},
    {NULL, BENCH_CPU, NULL, NULL, NULL},
};
