"""The native operator: whole passes of an encoder or decoder stack on CPUs with AVX-512."""
