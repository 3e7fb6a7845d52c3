"""How much units and features tell of phones: counts, ABX, a probe, and a split scored by them."""
