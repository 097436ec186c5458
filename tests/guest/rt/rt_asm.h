/* Constants that assembly and C share. */
#ifndef RT_ASM_H
#define RT_ASM_H

#define RT_KCODE64 0x08
#define RT_KDATA   0x10
#define RT_UCODE32 0x1b
#define RT_UDATA   0x23
#define RT_UCODE64 0x2b
#define RT_UDATA2  0x33
#define RT_KCODE32 0x38
#define RT_TSS     0x40
#define RT_KCODE16 0x50
#define RT_KDATA16 0x58
#define RT_FREE    0x60 /* the first selector for tests; the table has 64 entries */

#define RT_ALIAS 0x40000000    /* user-accessible mapping of [0, 1 GiB) */
#define RT_ARENA 0x10000000000 /* nothing is mapped from here on: tests' own */

#endif
