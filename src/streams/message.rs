//! Messages as bodies of operations: CBOR, as p2panda nodes write and read it.
//!
//! Written in the one canonical form, which nodes of both lines read; those of line 0.7 read no
//! other. What a node of line 0.6 writes has its map keys in the order of a struct's fields, so
//! there any form is read. Like there, what follows the first item is not looked at.

use bytes::Bytes;
use cbor_core::{DecodeOptions, Strictness, Value};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinError;

use crate::log_store::Line;

/// How deep a message may be nested.
const DEPTH_MAX: u16 = 128;

/// The canonical CBOR of a message; an error in words.
pub(super) fn encode<M: Serialize + ?Sized>(message: &M) -> Result<Bytes, String> {
    let value = Value::serialized(message).map_err(|error| error.to_string())?;
    Ok(value.encode().into())
}

/// The message in a body of this line.
pub(super) fn decode<M: DeserializeOwned>(line: Line, body: &[u8]) -> Result<M, DecodeError> {
    let strictness = match line {
        Line::V06 => Strictness::LENIENT,
        Line::V07 => Strictness::STRICT,
    };
    // No item is longer than the body that holds it, so nothing is reserved beyond that.
    let options = DecodeOptions::new()
        .strictness(strictness)
        .recursion_limit(DEPTH_MAX)
        .length_limit(body.len() as u64)
        .oom_mitigation(body.len());
    let value = match options.sequence_decoder(body).next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(DecodeError::of(error)),
        None => return Err(DecodeError::of("it is empty")),
    };
    value.deserialized().map_err(DecodeError::of)
}

/// The same on a thread for blocking work.
pub(super) async fn decode_elsewhere<M>(line: Line, body: Bytes) -> Result<M, DecodeError>
where
    M: DeserializeOwned + Send + 'static,
{
    let decoding = tokio::task::spawn_blocking(move || decode(line, &body)).await;
    match decoding.map_err(JoinError::try_into_panic) {
        Ok(decoded) => decoded,
        // As it would be here.
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and with it whoever waits here.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// A body is not a message of the type asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is no message of this type: {why}")]
pub struct DecodeError {
    why: String,
}

impl DecodeError {
    fn of(why: impl ToString) -> Self {
        Self {
            why: why.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use p2panda_core::cbor::{decode_cbor, encode_cbor};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Plain,
        One(u64),
        Two(i32, String),
        Named { zoo: bool, ant: Option<i64> },
    }

    /// Fields out of their canonical order, one of each shape that serde knows.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Message {
        zebra: String,
        kinds: Vec<Kind>,
        ant: (u8, i16, f64, f32),
        map: BTreeMap<String, Option<u32>>,
        nothing: (),
        letter: char,
        bytes: Vec<u8>,
    }

    fn messages() -> impl Strategy<Value = Message> {
        let kind = prop_oneof![
            Just(Kind::Plain),
            any::<u64>().prop_map(Kind::One),
            (any::<i32>(), any::<String>()).prop_map(|(a, b)| Kind::Two(a, b)),
            (any::<bool>(), any::<Option<i64>>()).prop_map(|(zoo, ant)| Kind::Named { zoo, ant }),
        ];
        let numbers = (
            any::<u8>(),
            any::<i16>(),
            prop_oneof![any::<f64>(), Just(1.5), Just(0.1)],
            any::<f32>(),
        );
        (
            any::<String>(),
            prop::collection::vec(kind, 0..4),
            numbers,
            prop::collection::btree_map(any::<String>(), any::<Option<u32>>(), 0..4),
            any::<char>(),
            any::<Vec<u8>>(),
        )
            .prop_map(|(zebra, kinds, ant, map, letter, bytes)| Message {
                zebra,
                kinds,
                ant,
                map,
                nothing: (),
                letter,
                bytes,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_node_of_line_0_6_reads_what_is_written_here_and_the_other_way(message in messages()) {
            let ours = encode(&message).expect("it has a form");
            let there: Message = decode_cbor(&ours[..]).expect("it is read there");
            prop_assert_eq!(&there, &message);
            let theirs = encode_cbor(&message).expect("it has a form");
            let here: Message = decode(Line::V06, &theirs).expect("it is read here");
            prop_assert_eq!(&here, &message);
            let own: Message = decode(Line::V07, &ours).expect("it is read here");
            prop_assert_eq!(&own, &message);
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            for line in [Line::V06, Line::V07] {
                let _ = decode::<Message>(line, &bytes);
                let _ = decode::<Vec<Vec<u8>>>(line, &bytes);
            }
        }
    }

    #[test]
    fn the_form_is_canonical() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Cat {
            name: String,
            age: u8,
        }
        let cat = Cat {
            name: "Mia".into(),
            age: 7,
        };
        let bytes = encode(&cat).expect("it has a form");
        // Shorter keys first, which is not the order of the fields.
        assert_eq!(&bytes[..], b"\xa2\x63age\x07\x64name\x63Mia");
        let theirs = encode_cbor(&cat).expect("it has a form");
        assert_ne!(theirs, bytes);
        assert_eq!(decode::<Cat>(Line::V06, &theirs), Ok(cat));
        assert!(decode::<Cat>(Line::V07, &theirs).is_err());
    }

    #[test]
    fn lengths_that_lie_reserve_nothing() {
        // An array of 2^60 items, and one nested too deep.
        let long = [0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0];
        let deep = [0x81; 4_096];
        for line in [Line::V06, Line::V07] {
            assert!(decode::<Vec<u64>>(line, &long).is_err());
            assert!(decode::<Vec<u64>>(line, &deep).is_err());
            assert!(decode::<u64>(line, &[]).is_err());
        }
    }

    #[test]
    fn fuzzed_bodies() {
        use crate::fuzz::{Fuzz, Shape, bounded_by_serde};
        let message = Message {
            zebra: "z".repeat(30),
            kinds: vec![
                Kind::Plain,
                Kind::One(u64::MAX),
                Kind::Two(-300, "two".to_owned()),
                Kind::Named {
                    zoo: true,
                    ant: Some(-1),
                },
            ],
            ant: (1, -2, 0.5, f32::INFINITY),
            map: [("a".to_owned(), None), ("b".to_owned(), Some(7))].into(),
            nothing: (),
            letter: 'q',
            bytes: vec![1, 200],
        };
        let corpus = [encode(&message).expect("it is encodable")];
        Fuzz::new("bodies", Shape::Cbor, corpus).run(|bytes| {
            for line in [Line::V06, Line::V07] {
                let decoded = bounded_by_serde(bytes, || decode::<Message>(line, bytes));
                let Ok(decoded) = decoded else { continue };
                let again = encode(&decoded).expect("it is encodable");
                let again = decode::<Message>(line, &again).expect("it was encoded");
                // By its text: what is no number is not equal to itself.
                assert_eq!(format!("{again:?}"), format!("{decoded:?}"));
            }
        });
    }
}
