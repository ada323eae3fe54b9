"""What we ask of the kernel: the only code that says ptrace."""
