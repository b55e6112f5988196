"""Words about FX graphs that `passes`, `lowering` and `compiler` share. Leaves."""
