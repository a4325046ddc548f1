//! Two sessions against each other, and one against a liar.

mod fuzz;
mod liar;
mod monitor;
mod pair;
mod plan;
