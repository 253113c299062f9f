/* The x87 control word and register stack, MXCSR and all of the ymm registers, which a system
 * call leaves alone. */
#include "../conformance.h"

static int wait_with_registers(void *vectors_in, void *vectors_out) {
  char line[16];
  long result;
  /* No call in between: read(2) is made with the registers loaded. */
  __asm__ volatile("vmovdqu 0(%[in]), %%ymm0\n\tvmovdqu 32(%[in]), %%ymm1\n\t"
                   "vmovdqu 64(%[in]), %%ymm7\n\tvmovdqu 96(%[in]), %%ymm15\n\t"
                   "syscall\n\t"
                   "vmovdqu %%ymm0, 0(%[out])\n\tvmovdqu %%ymm1, 32(%[out])\n\t"
                   "vmovdqu %%ymm7, 64(%[out])\n\tvmovdqu %%ymm15, 96(%[out])\n\t"
                   : "=a"(result)
                   : "a"((long)SYS_read), "D"(0L), "S"(line),
                     "d"(sizeof line), [in] "r"(vectors_in), [out] "r"(vectors_out)
                   : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm7", "xmm15");
  return result == 3 && !memcmp(line, "go\n", 3);
}

int main(void) {
  if (!__builtin_cpu_supports("avx2"))
    skip("AVX2");
  unsigned char in[128], out[128];
  for (int i = 0; i < 128; i++)
    in[i] = (unsigned char)(i * 7 + 3);
  unsigned short control = 0x0c7f & ~0x300, control_after; /* single precision, towards zero */
  unsigned mxcsr = 0x7f80 | 0x8000, mxcsr_after;           /* towards zero, flush to zero */
  double pi = 0, one = 0;
  __asm__ volatile("fninit; fldcw %0; fld1; fldpi" : : "m"(control));
  __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
  say("ready\n");
  int went = wait_with_registers(in, out);
  __asm__ volatile("fstpl %0; fstpl %1" : "=m"(pi), "=m"(one));
  __asm__ volatile("fnstcw %0; stmxcsr %1" : "=m"(control_after), "=m"(mxcsr_after));
  __asm__ volatile("fninit");
  unsigned usual = 0x1f80;
  __asm__ volatile("ldmxcsr %0" : : "m"(usual));
  expect(went, "standard input");
  expect((control_after & 0xf7f) == (control & 0xf7f), "x87 control word %#x", control_after);
  expect((mxcsr_after & ~0x3fu) == mxcsr, "MXCSR %#x", mxcsr_after);
  expect(one == 1.0 && pi > 3.14159 && pi < 3.1416, "x87 stack %f %f", one, pi);
  expect(!memcmp(in, out, sizeof in), "vector registers");
  ok();
}
