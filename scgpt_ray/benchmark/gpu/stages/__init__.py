"""The stages, a module each: `run(bench)` measures or checks one thing and writes lines."""
