"""The native operator: whole passes of an encoder or decoder stack on CPUs with AVX2, AVX-512 or NEON."""
