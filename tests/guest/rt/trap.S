/*
 * Entry points of all 256 vectors, and rt_enter(), which runs a snippet until a trap that nobody handles.
 */
#include "rt_asm.h"

    .text
    .altmacro
    .macro vector n
    .balign 16
    .if (\n == 8) || ((\n >= 10) && (\n <= 14)) || (\n == 17) || (\n == 21)
    .else
    pushq $0
    .endif
    pushq $\n
    jmp rt_trap_common
    .endm

    .balign 16
    .globl rt_vectors
rt_vectors:
    .set i, 0
    .rept 256
    vector %i
    .set i, i + 1
    .endr

rt_trap_common:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    mov %cr2, %rsi
    cld
    mov %rsp, %rbp
    and $-16, %rsp
    call rt_dispatch
    mov %rbp, %rsp
    test %eax, %eax
    jz rt_leave
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

/* void rt_enter(struct frame *f): loads everything from f and goes there; returns after rt_dispatch said "leave". */
    .globl rt_enter
rt_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    mov %rsp, rt_leave_rsp
    cli
    mov %rdi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq
rt_leave:
    mov rt_leave_rsp, %rsp
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .bss
    .balign 8
    .globl rt_leave_rsp
rt_leave_rsp: .skip 8

    .section .note.GNU-stack, "", @progbits
