//! The parts of the serving benchmark: its data, the servers it compares, the load on them, and what came of
//! it.

mod beside;
pub mod data;
pub mod load;
pub mod machine;
pub mod parts;
pub mod report;
pub mod requests;
pub mod servers;
pub mod sink;
pub mod usage;
