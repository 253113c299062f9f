/* x86_64: what only the processor can tell. */
#include <cpuid.h>
#include <errno.h>

#include "arch.h"

/* CPUID leaf 0DH, sub-leaf n: size and offset of component n in the standard format of XSAVE. */
int sk_arch_vector_component(int component, uint32_t *offset, uint32_t *size) {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(0x0d, (uint32_t)component, &a, &b, &c, &d) || a == 0 || (c & 1))
    return -ENODEV;
  *size = a;
  *offset = b;
  return 0;
}
