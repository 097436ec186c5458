/*
 * The way from 64-bit mode down to real mode and back: see modes.c. Linked at 0x8000, below 64 KiB.
 */
    .globl m_efer, m_cr0, m_int30, m_gp_error, m_gp_eip, m_paged32, m_pf_cr2, m_pf_error, m_pae, m_gp_at, m_int40, m_int40_flags, m_de, m_real_cs, m_wrap_di, m_sp, m_seg, m_high, m_big
    .section .low, "awx"
    .code64
    .globl modes_go
modes_go:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    cli
    mov %rsp, m_rsp
    mov %cr3, %rax
    mov %rax, m_cr3
    mov %cr4, %rax
    mov %rax, m_cr4
    pushq $0x38
    lea 1f(%rip), %rax
    push %rax
    lretq
    .code32
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $m_stack_top, %esp
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0                 /* compatibility mode to 32-bit protected mode */
    mov $0xc0000080, %ecx
    rdmsr
    mov %eax, m_efer               /* LMA is clear already */
    and $0xfffffeff, %eax
    wrmsr
    mov %cr0, %eax
    mov %eax, m_cr0
    lidt m_idtr32
    int $0x30
    mov $0xfff8, %eax
m_gp_at:
    mov %eax, %fs                  /* #GP(fff8), skipped by its handler */
    /* 32-bit paging with 4 MiB pages */
    movl $0x83, m_pd
    movl $0x83, m_pd + 0x400
    mov m_cr4, %eax
    and $0xffffffdf, %eax
    or $0x10, %eax
    mov %eax, %cr4
    mov $m_pd, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    movl $0x600dcafe, m_scratch
    mov m_scratch + 0x40000000, %eax
    mov %eax, m_paged32
m_pf_at:
    movl $1, 0x90000000            /* #PF, skipped by its handler */
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    /* PAE paging without long mode */
    movl $m_pd_pae + 1, m_pdpt
    movl $0, m_pdpt + 4
    movl $m_pd_pae + 1, m_pdpt + 8 /* the second GiB shows the first again */
    movl $0x83, m_pd_pae
    mov m_cr4, %eax
    mov %eax, %cr4
    mov $m_pdpt, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    movl $0xfeedbeef, m_scratch
    mov m_scratch + 0x40000000, %eax
    mov %eax, m_pae
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    ljmp $0x50, $2f
    .code16
2:  mov $0x58, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov %cr0, %eax
    and $0xfe, %al
    mov %eax, %cr0
    ljmp $0, $3f
3:  mov %cs, %ax                   /* real mode */
    mov %ax, m_real_cs
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $m_stack_top, %sp
    lidt m_idtr16
    movw $m_isr40, 0x40 * 4
    movw %ax, 0x40 * 4 + 2
    movw $m_isr0, 0
    movw %ax, 2
    mov %sp, m_sp
    stc
    int $0x40
    sub %sp, m_sp                  /* 0 when INT and IRET balance */
    xor %cx, %cx
    mov $7, %ax
    xor %dx, %dx
    div %cx                        /* #DE, skipped by its handler */
    mov $0x0123, %ax               /* segment * 16 + offset */
    mov %ax, %es
    movw $0x1357, m_scratch
    mov $m_scratch - 0x1230, %di
    mov %es:(%di), %ax
    mov %ax, m_seg
    mov $0xffff, %ax               /* above 1 MiB by ffff:0010, A20 on */
    mov %ax, %es
    mov %es:0x10, %ax
    mov %ax, m_high
    xor %ax, %ax
    mov %ax, %es
    mov $0x7000, %ax
    mov %ax, %es
    cld
    mov $0xfffe, %di               /* DI wraps at 64 KiB */
    mov $4, %cx
    mov $0x5a, %al
    rep stosb
    mov %di, m_wrap_di
    xor %ax, %ax
    mov %ax, %es
    mov $0x12345678, %eax          /* 32-bit registers in 16-bit code */
    rol $8, %eax
    mov %eax, m_big
    cli
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x38, $4f
    .code32
4:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov m_cr4, %eax
    mov %eax, %cr4
    mov m_cr3, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $0x08, $5f
    .code64
5:  mov m_rsp, %rsp
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .code32
m_h30:
    incl m_int30
    iret
m_h13:
    popl m_gp_error
    mov (%esp), %eax
    mov %eax, m_gp_eip
    addl $2, (%esp)                /* mov %eax, %fs */
    iret
m_h14:
    popl m_pf_error
    mov %cr2, %eax
    mov %eax, m_pf_cr2
    addl $10, (%esp)               /* movl $imm, moffs */
    iret
    .code16
m_isr40:
    push %bp
    mov %sp, %bp
    mov 6(%bp), %ax
    mov %ax, m_int40_flags
    pop %bp
    incw m_int40
    iret
m_isr0:
    push %bp
    mov %sp, %bp
    addw $2, 2(%bp)                /* div %cx */
    pop %bp
    incw m_de
    iret

    .balign 8
m_rsp: .quad 0
m_cr3: .quad 0
m_cr4: .quad 0
m_scratch: .long 0
m_efer: .long 0
m_cr0: .long 0
m_int30: .long 0
m_gp_error: .long 0
m_gp_eip: .long 0
m_paged32: .long 0
m_pf_cr2: .long 0
m_pf_error: .long 0
m_pae: .long 0
m_big: .long 0
m_int40: .word 0
m_int40_flags: .word 0
m_de: .word 0
m_real_cs: .word 0
m_wrap_di: .word 0
m_sp: .word 0
m_seg: .word 0
m_high: .word 0
m_idtr32: .word 0x31 * 8 - 1
    .long m_idt32
m_idtr16: .word 0x3ff
    .long 0
    .balign 8
m_idt32:
    .fill 13, 8, 0
    .word m_h13 - modes_go + 0x8000, 0x38, 0x8e00, 0
    .word m_h14 - modes_go + 0x8000, 0x38, 0x8e00, 0
    .fill 0x30 - 15, 8, 0
    .word m_h30 - modes_go + 0x8000, 0x38, 0x8e00, 0
    .balign 32
m_pdpt: .fill 4, 8, 0
    .skip 512
m_stack_top:
    .balign 4096
m_pd: .skip 4096
m_pd_pae: .skip 4096

    .section .note.GNU-stack, "", @progbits
