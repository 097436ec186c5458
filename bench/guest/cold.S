/*
 * Code that is long and runs once: what a boot or the start of a compiler looks like to a translator.
 * 40,000 functions of 64 bytes, no two with the same immediates. Called from control.c:run_cold with one argument.
 */
        .text
        .balign 4096
        .globl  bench_cold_code, bench_cold_end
        .type   bench_cold_code, @object
bench_cold_code:
        .set    n, 0
        .rept   40000
        lea     n * 3 + 1(%rdi), %rax
        mov     $n * 0x10003, %ecx
        xor     %rcx, %rax
        mov     %rax, -8(%rsp)
        test    $n & 0xff | 1, %al
        jz      1f
        rol     $(n % 61 + 1), %rax
        add     -8(%rsp), %rax
1:      cmp     %rcx, %rax
        jb      2f
        sub     $n * 7 + 3, %rax
2:      ret
        .balign 64, 0xcc
        .set    n, n + 1
        .endr
bench_cold_end:

        .section .rodata
        .globl  bench_cold_count, bench_cold_stride
        .balign 8
bench_cold_count:
        .quad   40000
bench_cold_stride:
        .quad   64
        .section .note.GNU-stack, "", @progbits
