//! Numbers of the operations of the worker protocol (Nix's src/libstore/worker-protocol.hh): of those that
//! are asked of a daemon here, and of those that clients ask.

pub(super) const IS_VALID_PATH: u64 = 1;
pub(super) const QUERY_REFERRERS: u64 = 6;
pub(super) const ADD_TO_STORE: u64 = 7;
pub(super) const BUILD_PATHS: u64 = 9;
pub(super) const ENSURE_PATH: u64 = 10;
pub(super) const ADD_TEMP_ROOT: u64 = 11;
pub(super) const ADD_INDIRECT_ROOT: u64 = 12;
pub(super) const SYNC_WITH_GC: u64 = 13;
pub(super) const FIND_ROOTS: u64 = 14;
pub(super) const SET_OPTIONS: u64 = 19;
pub(super) const COLLECT_GARBAGE: u64 = 20;
pub(super) const QUERY_ALL_VALID_PATHS: u64 = 23;
pub(super) const QUERY_PATH_INFO: u64 = 26;
pub(super) const QUERY_PATH_FROM_HASH_PART: u64 = 29;
pub(super) const QUERY_SUBSTITUTABLE_PATH_INFOS: u64 = 30;
pub(super) const QUERY_VALID_PATHS: u64 = 31;
pub(super) const QUERY_SUBSTITUTABLE_PATHS: u64 = 32;
pub(super) const QUERY_VALID_DERIVERS: u64 = 33;
pub(super) const OPTIMISE_STORE: u64 = 34;
pub(super) const VERIFY_STORE: u64 = 35;
pub(super) const BUILD_DERIVATION: u64 = 36;
pub(super) const ADD_SIGNATURES: u64 = 37;
pub(super) const NAR_FROM_PATH: u64 = 38;
pub(super) const ADD_TO_STORE_NAR: u64 = 39;
pub(super) const QUERY_MISSING: u64 = 40;
pub(super) const QUERY_DERIVATION_OUTPUT_MAP: u64 = 41;
pub(super) const REGISTER_DRV_OUTPUT: u64 = 42;
pub(super) const QUERY_REALISATION: u64 = 43;
pub(super) const ADD_MULTIPLE_TO_STORE: u64 = 44;
pub(super) const ADD_BUILD_LOG: u64 = 45;
pub(super) const BUILD_PATHS_WITH_RESULTS: u64 = 46;
pub(super) const ADD_PERM_ROOT: u64 = 47;
