//! Append-only logs of signed operations: their bytes, their checks, their store.

mod operation;

pub use self::operation::{
    Author, AuthorKey, BODY_BYTES_MAX, Draft, Field, HEADER_BYTES_MAX, Line, LogId, Operation,
    OperationId, ParseLineError, ParseNameError, Refused, Topic, verify_all,
};
