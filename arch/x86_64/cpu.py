"""Processor features that programs find out by CPUID and then rely on."""

from __future__ import annotations

# Instruction sets that compilers, the C library and numeric libraries choose code by; what only
# the kernel sees (smep, mce ...) does not bind a program.
RELEVANT = frozenset(
    """
    fpu cx8 cmov mmx fxsr sse sse2 pni ssse3 sse4_1 sse4_2 sse4a cx16 popcnt movbe aes pclmulqdq
    rdrand rdseed xsave xsaveopt xsavec xgetbv1 avx avx2 f16c fma fma4 xop bmi1 bmi2 abm lahf_lm
    adx erms fsrm sha_ni gfni vaes vpclmulqdq avx512f avx512dq avx512ifma avx512cd avx512bw
    avx512vl avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq
    avx512_vp2intersect avx512_bf16 avx512_fp16 avx_vnni avx_ifma amx_tile amx_int8 amx_bf16
    clwb clflushopt clzero fsgsbase rdpid rdtscp movdiri movdir64b serialize rtm hle pku ospke
    waitpkg 3dnowprefetch
    """.split()
)


def features() -> tuple[str, ...]:
    """The relevant flags of ``/proc/cpuinfo`` (proc(5)), sorted."""
    # The first processor's part suffices; making the others' takes milliseconds.
    with open("/proc/cpuinfo", "rb", buffering=0) as file:
        for line in file.read(8192).decode().split("\n"):
            if line.startswith("flags"):
                return tuple(sorted(RELEVANT.intersection(line.partition(":")[2].split())))
    return ()
