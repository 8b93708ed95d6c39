//! Checks of the house by reading it: language, names, layers, imports, and the documentation. Files are
//! parsed as a whole.

mod documents;
mod files;
mod imports;
mod layers;
mod names;
mod prose;
mod site;
