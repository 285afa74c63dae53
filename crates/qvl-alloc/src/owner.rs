//! Who has how much, and may have.
