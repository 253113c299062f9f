#include <stdint.h>

/* What arch/<name>/native.c answers; arch/README.md has the contract. */

/* Where a component of the vector state lies in the regset: 0, or -ENODEV where it is not there
 * or the architecture has one regset per component. */
int sk_arch_vector_component(int component, uint32_t *offset, uint32_t *size);
