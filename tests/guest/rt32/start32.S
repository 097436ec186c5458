/*
 * Entry (PVH, "x86/HVM direct boot ABI"), entry points of all 256 vectors, and the way into snippets and out: see rt32.h.
 */
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18          /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long rt_start

    .section .text.start, "ax"
    .globl rt_start
rt_start:
    cli
    cld
    mov $rt_bss, %edi       /* may hold what the loader left */
    mov $rt_bss_end, %ecx
    sub %edi, %ecx
    shr $2, %ecx
    xor %eax, %eax
    rep stosl
    mov $rt_stack_top, %esp
    lgdt rt_gdtr
    lidt rt_idtr
    ljmp $0x08, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    call rt_main
2:  hlt
    jmp 2b

    .altmacro
    .macro vector n
    .balign 16
    .if (\n == 8) || ((\n >= 10) && (\n <= 14)) || (\n == 17) || (\n == 21)
    .else
    pushl $0
    .endif
    pushl $\n
    jmp trap_common
    .endm

    .balign 16
    .globl rt_vectors
rt_vectors:
    .set i, 0
    .rept 256
    vector %i
    .set i, i + 1
    .endr

trap_common:
    pusha
    push %ds
    push %es
    push %fs
    push %gs
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    mov %esp, %eax
    push %eax
    call rt_trapped         /* copies the frame; the run is over */
    mov rt_leave_esp, %esp
    mov $0x10, %eax
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov rt_leave_esp, %esp
    popfl
    pop %ebp
    pop %ebx
    pop %esi
    pop %edi
    ret

/* void rt_enter(const uint32_t *image): pops GS, FS, ES, DS, the general registers, and what IRET takes. */
    .globl rt_enter
rt_enter:
    mov 4(%esp), %eax
    push %edi
    push %esi
    push %ebx
    push %ebp
    pushfl
    mov %esp, rt_leave_esp
    cli
    mov %eax, %esp
    pop %gs
    pop %fs
    pop %es
    pop %ds
    popa
    iret

    .data
    .balign 8
    .globl rt_gdt
rt_gdtr:
    .word 64 * 8 - 1
    .long rt_gdt
rt_idtr:
    .word 256 * 8 - 1
    .long rt_idt
    .balign 16
rt_gdt: /* see rt32.h */
    .quad 0
    .quad 0x00cf9b000000ffff     /* 08 kernel code */
    .quad 0x00cf93000000ffff     /* 10 kernel data */
    .quad 0x00cffb000000ffff     /* 18 user code */
    .quad 0x00cff3000000ffff     /* 20 user data */
    .fill 64 - 5, 8, 0           /* 28 TSS; 30 and up: tests */

    .bss
    .balign 16
    .globl rt_idt, rt_leave_esp, rt_stack_top
rt_idt: .skip 256 * 8
rt_leave_esp: .skip 16
    .skip 16384
rt_stack_top:

    .section .note.GNU-stack, "", @progbits
