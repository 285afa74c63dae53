//! How much of the machine may be used, from pressure, power and what was measured. Pure.
