"""One scripted call through emulator and gateway on this machine, shown and checked."""
