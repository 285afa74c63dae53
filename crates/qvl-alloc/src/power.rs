//! Battery or mains, heat, and energy.
