/*
 * From the boot protocol's 32-bit protected mode (PVH, "x86/HVM direct boot ABI") to 64-bit C.
 *
 * Memory: [0, 1 GiB) identity-mapped for the supervisor, the same memory again at RT_ALIAS for user mode, and
 * [3 GiB, 4 GiB) for chips; all with 2 MiB pages.
 */
#include "rt_asm.h"

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18          /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long rt_start32

    .section .text.start, "ax"
    .code32
    .globl rt_start32
rt_start32:
    cli
    cld
    lgdt rt_gdtr32
    ljmp $RT_KCODE32, $1f
1:  mov $RT_KDATA, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    /* .bss may hold what the loader left */
    mov $rt_bss, %edi
    mov $rt_bss_end, %ecx
    sub %edi, %ecx
    shr $2, %ecx
    xor %eax, %eax
    rep stosl
    mov $rt_stack_top, %esp

    /* PML4[0] -> PDPT; PDPT[0] -> pd_low, [1] -> pd_alias, [3] -> pd_io */
    movl $rt_pdpt + 7, rt_pml4
    movl $rt_pd_low + 3, rt_pdpt
    movl $rt_pd_alias + 7, rt_pdpt + 8
    movl $rt_pd_io + 3, rt_pdpt + 24
    xor %ecx, %ecx
    mov $0x83, %eax              /* present, writable, 2 MiB */
2:  mov %eax, rt_pd_low(, %ecx, 8)
    mov %eax, %edx
    or $4, %edx                  /* user */
    mov %edx, rt_pd_alias(, %ecx, 8)
    lea 0xc0000010(%eax), %edx   /* uncached */
    mov %edx, rt_pd_io(, %ecx, 8)
    add $0x200000, %eax
    inc %ecx
    cmp $512, %ecx
    jne 2b

    mov $0x6a0, %eax             /* PAE, PGE, OSFXSR, OSXMMEXCPT (SDM vol. 3A, 2.5) */
    mov %eax, %cr4
    mov $rt_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx        /* IA32_EFER: SCE, LME, NXE */
    mov $0x901, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80010033, %eax        /* PG, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    ljmp $RT_KCODE64, $3f
    .code64
3:  mov $RT_UDATA, %eax      /* survives the way to ring 3 */
    mov %eax, %ds
    mov %eax, %es
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov $RT_KDATA, %eax
    mov %eax, %ss
    fninit
    call rt_main
4:  hlt
    jmp 4b

    .data
    .balign 8
rt_gdtr32:
    .word 0x1ff
    .long rt_gdt
    .balign 16
    .globl rt_gdt
rt_gdt: /* see rt_asm.h */
    .quad 0
    .quad 0x00af9b000000ffff     /* 08 kernel code, 64-bit */
    .quad 0x00cf93000000ffff     /* 10 kernel data */
    .quad 0x00cffb000000ffff     /* 18 user code, 32-bit */
    .quad 0x00cff3000000ffff     /* 20 user data */
    .quad 0x00affb000000ffff     /* 28 user code, 64-bit */
    .quad 0x00cff3000000ffff     /* 30 user data (where SYSEXIT expects it) */
    .quad 0x00cf9b000000ffff     /* 38 kernel code, 32-bit */
    .quad 0, 0                   /* 40 TSS */
    .quad 0x00009b000000ffff     /* 50 kernel code, 16-bit, base 0 */
    .quad 0x000093000000ffff     /* 58 kernel data, 16-bit, base 0 */
    .fill 64 - 12, 8, 0          /* 60 and up: tests */

    .bss
    .balign 4096
    .globl rt_pml4, rt_pdpt, rt_pd_low
rt_pml4:     .skip 4096
rt_pdpt:     .skip 4096
rt_pd_low:   .skip 4096
rt_pd_alias: .skip 4096
rt_pd_io:    .skip 4096
    .skip 32768
    .globl rt_stack_top
rt_stack_top:

    .section .note.GNU-stack, "", @progbits
