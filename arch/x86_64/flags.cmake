# Freestanding code must not touch vector state: it belongs to the frozen thread.
set(arch_freestanding_flags -mgeneral-regs-only -mno-red-zone)
