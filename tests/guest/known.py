"""Checks that fail on a machine for a reason of that machine, by (guest, pattern of the check's text, reason)."""

_TCG_SS = "QEMU raises #GP for non-canonical stack addresses"
_TCG_BRANCH = "QEMU faults at the target of a branch to a non-canonical address, not at the branch"
_TCG_RMW = "QEMU reads first: the error code of a faulting read-modify-write says read"
_TCG_INT = "QEMU reports vector*16+2 for IDT entries in long mode"
_TCG_RSVD = "QEMU reports reserved bits without P in the error code"
_TCG_MSR = "QEMU accepts non-canonical addresses in MSRs"
_TCG_LIMIT = "QEMU checks neither segment limits nor access types"
_TCG_NO = "QEMU's TCG does not implement this"

KNOWN = {
    "qemu": [
        ("exceptions", "#SS: non-canonical address by *", _TCG_SS),
        ("exceptions", "#SS: push to a non-canonical address", _TCG_SS),
        ("exceptions", "#UD with a non-canonical stack: *", _TCG_SS),
        ("exceptions", "#GP at the * non-canonical address", _TCG_BRANCH),
        ("exceptions", "#GP at the call of a non-canonical address", _TCG_BRANCH),
        ("exceptions", "the call left RSP", _TCG_BRANCH),
        ("exceptions", "the return left RSP", _TCG_BRANCH),
        ("exceptions", "#PF: a read-modify-write is a write", _TCG_RMW),
        ("exceptions", "read-modify-write *: crossing *", _TCG_RMW),
        ("exceptions", "cmpxchg16b: #PF as a write*", _TCG_RMW),
        ("exceptions", "#GP(0): null SS with RPL 3 at CPL 0", "QEMU does not check RPL here"),
        ("exceptions", "INT1 *", _TCG_NO),
        ("exceptions", "INT3 at CPL 3 with a gate of DPL 0*", _TCG_INT),
        ("exceptions", "INT n at CPL 3 with a gate of DPL 0*", _TCG_INT),
        ("exceptions", "INT n through a *", _TCG_INT),
        ("exceptions", "#UD then #NP: *", _TCG_INT),
        ("exceptions", "#XM: *", _TCG_NO),
        ("exceptions", "#UD instead of #XM*", _TCG_NO),
        ("exceptions", "#GP: reserved bits of MXCSR", _TCG_NO),
        ("exceptions", "#AC(0): *", _TCG_NO),
        ("exceptions", "RF is set *", "QEMU never sets RF in a frame"),
        ("paging", "NXE off: bit 63 is reserved", _TCG_RSVD),
        ("paging", "a physical-address bit beyond MAXPHYADDR: *", _TCG_RSVD),
        ("paging", "and user write", _TCG_RSVD),
        ("paging", "PS in a PML4 entry is reserved", _TCG_RSVD),
        ("paging", "bit 13 of a 2 MiB entry is reserved", _TCG_RSVD),
        ("paging", "SMAP: a descriptor in a user page*", "QEMU lets AC override SMAP for implicit accesses"),
        ("syscalls", "and leaves the others", "QEMU clears the arithmetic flags on SYSCALL"),
        ("syscalls", "*STAR: *", _TCG_MSR),
        ("syscalls", "SYSENTER_E*: *", _TCG_MSR),
        ("syscalls", "IRETQ: a non-canonical RIP: #GP(0)", _TCG_BRANCH),
        ("syscalls", "IRETQ: RSP left", _TCG_BRANCH),
        ("interrupts", "*and they can't be unmasked", "QEMU lets LVTs be unmasked while the APIC is disabled"),
        ("debug", "DR7.GD: *", _TCG_NO),
        ("debug", "DR6.BD", _TCG_NO),
        ("debug", "GD is cleared *", _TCG_NO),
        ("msr", "WRMSR: non-canonical address: #GP", _TCG_MSR),
        ("msr", "WRMSR: *", "QEMU ignores bad values written to MSRs"),
        ("crmode", "*", "QEMU lets forbidden changes of CR0 and CR4 through, and the guest dies"),
        ("msr", "CR0: NW without CD: #GP", "QEMU takes any value for CR0"),
        ("msr", "CR0: bit 32: #GP", "QEMU takes any value for CR0"),
        ("msr", "CR0: reserved bits *", "QEMU takes any value for CR0"),
        ("msr", "unknown MSR: *", "QEMU ignores unknown MSRs"),
        ("msr", "IA32_TIME_STAMP_COUNTER *", _TCG_NO),
        ("msr", "writing it sets the counter", _TCG_NO),
        ("segments", "a doubleword over the limit*", _TCG_LIMIT),
        ("segments", "an offset that wraps*", _TCG_LIMIT),
        ("segments", "a store to read-only data*", _TCG_LIMIT),
        ("segments", "expand-down*#GP(0)", _TCG_LIMIT),
        ("segments", "an access through a null DS*", _TCG_LIMIT),
        ("segments", "a store through CS*", _TCG_LIMIT),
        ("segments", "a push beyond the stack's limit*", _TCG_LIMIT),
        ("segments", "ESP left", _TCG_LIMIT),
        ("segments", "far *: L and D both set*", "QEMU does not check L and D together"),
        ("gates32", "inner stack: n*#SS(SS1)", "QEMU checks neither presence nor limit of an inner stack"),
        ("gates32", "call gate, refused: to code that is not present*", "QEMU checks the level first"),
        ("gates32", "ends", "QEMU takes all 32 bits of a 16-bit gate's offset, and the guest is lost"),
        ("tasks", "debug registers: *", _TCG_NO),
        ("tasks", "new task: *", "QEMU raises the new task's exceptions with the registers of the old one"),
        ("vm86", "*: EIP above 0FFFFH*", _TCG_LIMIT),
        ("vm86", "faults: a word at offset 0FFFFH*", _TCG_LIMIT),
        ("vm86", "faults: an effective address above*", _TCG_LIMIT),
        ("vm86", "faults: a push across the limit*", _TCG_LIMIT),
        ("vm86", "VME: CR4.VME without the feature*", "QEMU takes any value for CR4"),
        ("wrap16", "MOVS: an element across the limit*", _TCG_LIMIT),
        ("wrap16", "MOVS: with nothing done", _TCG_LIMIT),
        ("wrap16", "MOVS: and in the middle", _TCG_LIMIT),
        ("wrap16", "MOVS: with what came before done", _TCG_LIMIT),
        ("instr32", "INTO at CPL 3 with a gate of DPL 0*", _TCG_INT),
        ("smp", "code: code that runs while it is changed, then an interrupt",
         "QEMU's processors see the change some time after the interrupt"),
        ("msr", "CR8 above 15: #GP", "QEMU takes any value for CR8"),
        ("msr", "WRGSBASE of a non-canonical *", _TCG_MSR),
        ("msr", "XRSTOR of reserved MXCSR bits*", _TCG_NO),
        ("msr", "XSAVE with CR0.TS: #NM", _TCG_NO),
        ("msr", "TSC, PAE, CX8, APIC*", "QEMU took the bad IA32_APIC_BASE, which disabled the APIC for good"),
        ("apic", "an illegal vector in the ICR*", "QEMU delivers illegal vectors"),
        ("apic", "and no interrupt", "QEMU delivers illegal vectors"),
        ("apic", "nor is it kept", "QEMU accepts interrupts while the APIC is software-disabled"),
        ("apic", "an illegal vector raises the error interrupt", "QEMU delivers illegal vectors"),
        ("loops", "through the stack pointer it is #SS", "QEMU raises #GP for any non-canonical address"),
        ("features", "rtm: hidden*", "QEMU executes XBEGIN without the feature"),
        ("features", "rdseed: hidden*", "QEMU executes RDSEED whenever it has RDRAND"),
        ("features", "waitpkg: hidden*", "QEMU decodes TPAUSE as another instruction"),
        ("features", "xop: hidden*", "QEMU decodes XOP as POP"),
        ("features", "tbm: hidden*", "QEMU decodes XOP as POP"),
        ("features", "ends", "QEMU takes any value for CR4, and the guest dies"),
        ("features", "CR4.PCIDE: hidden: #GP(0)", "QEMU accepts CR4.PCIDE without having PCID"),
        ("paging", "CR4.PCIDE without the feature: #GP", "QEMU accepts CR4.PCIDE without having PCID"),
    ],
    "qemu-kvm": [],
    "fonda-kvm": [],
    "fonda-bt": [],
}

# Guests that end in shutdown (triple fault) on purpose, and the status with which the machine then ends.
SHUTDOWN = {"triple": {"fonda": 112}}

# Guests that also run under these CPU models (on Fonda).
MODELS = {"features": ["x86-64-v2", "x86-64-v3"]}

# Guests that want more than one processor.
CPUS = {"smp": 4}
