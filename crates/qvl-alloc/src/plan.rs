//! Memory of a run that is known before: recorded, packed, and run from one allocation.
