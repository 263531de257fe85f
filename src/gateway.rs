//! Wires stages 2 to 5.
