//! The codec of line 0.6 against p2panda-core 0.6.1 itself.
//!
//! What stock takes is what it decodes, would encode to the same bytes, and finds valid: only
//! then do all nodes agree on the id.

use bytes::Bytes;
use p2panda_core::{
    Hash, PruneFlag, SigningKey, Timestamp, VerifyingKey,
    cbor::{decode_cbor, encode_cbor},
    operation::validate_header,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

/// The extensions of a stock node of 0.6.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Extensions {
    #[serde(default, skip_serializing_if = "PruneFlag::is_not_set")]
    prune_flag: PruneFlag,
    log_id: Hash,
    version: u64,
}

type Stock = p2panda_core::Header<Extensions>;

/// The id that every stock node gives to these bytes; none where one of them would refuse them.
fn stock_id(bytes: &[u8]) -> Option<[u8; 32]> {
    let header: Stock = decode_cbor(bytes).ok()?;
    let same = encode_cbor(&header).is_ok_and(|again| again == bytes);
    (same && validate_header(&header).is_ok()).then(|| *header.hash().as_bytes())
}

fn our_id(bytes: &[u8]) -> Result<[u8; 32], Refused> {
    let operation = Operation::decode(Line::V06, Bytes::copy_from_slice(bytes), None)?;
    operation.verify()?;
    Ok(*operation.id().as_bytes())
}

/// Stock must agree, or we are stricter for a reason that is written here.
pub(super) fn assert_no_laxer_than_stock(bytes: &[u8]) -> Result<(), TestCaseError> {
    match (stock_id(bytes), our_id(bytes)) {
        (Some(theirs), Ok(ours)) => prop_assert_eq!(theirs, ours),
        (None, Err(_)) => {}
        // No member could serve its body, and stock's own sum of payload sizes may overflow.
        (Some(_), Err(Refused::PayloadTooLarge { .. })) => {}
        // Both lines share one store, and 0.7 ends there.
        (Some(_), Err(Refused::SequenceTooHigh { .. })) => {}
        // Stock reads the version and looks at it nowhere; nothing writes another.
        (Some(_), Err(Refused::ExtensionsVersionUnknown { .. })) => {}
        (theirs, ours) => {
            return Err(TestCaseError::fail(format!("{theirs:?}, but {ours:?}")));
        }
    }
    Ok(())
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..300u64,
        65_530..65_540u64,
        any::<u32>().prop_map(u64::from),
        Just(u64::from(u32::MAX)),
        Just(u64::from(u32::MAX) + 1),
        any::<u64>(),
        Just(u64::MAX),
    ]
}

prop_compose! {
    fn draft()(
        topic: [u8; 32],
        seq in prop_oneof![Just(0), 1..30u32, any::<u32>(), Just(u32::MAX)],
        backlink: [u8; 32],
        prune: bool,
        timestamp_micros in number(),
        body in prop::option::of(prop::collection::vec(any::<u8>(), 0..400)),
    ) -> Draft {
        Draft {
            line: Line::V06,
            log_id: Topic::from_bytes(topic).log_id(),
            seq,
            backlink: (seq > 0).then(|| OperationId::from_bytes(backlink)),
            prune,
            timestamp_micros,
            body: body.map(Bytes::from),
        }
    }
}

/// Stock's header for what a draft says.
fn stock_header(draft: &Draft, seed: &[u8; 32]) -> Stock {
    let key = SigningKey::from_bytes(seed);
    let body = draft.body.as_ref().filter(|body| !body.is_empty());
    let mut header = Stock {
        version: 1,
        verifying_key: key.verifying_key(),
        signature: None,
        payload_size: body.map_or(0, |body| body.len() as u64),
        payload_hash: body.map(Hash::digest),
        timestamp: Timestamp::new(draft.timestamp_micros),
        seq_num: u64::from(draft.seq),
        backlink: draft.backlink.map(|it| Hash::from_bytes(*it.as_bytes())),
        extensions: Extensions {
            prune_flag: PruneFlag::new(draft.prune),
            log_id: Hash::from_bytes(*draft.log_id.as_bytes()),
            version: 1,
        },
    };
    header.sign(&key);
    header
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(usize, u8),
    Replace(usize, u8),
    Insert(usize, u8),
    Delete(usize),
    Repeat(usize, usize),
    Cut(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Mutation::Replace(at, to)),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(at, it)| Mutation::Insert(at, it)),
        1 => any::<usize>().prop_map(Mutation::Delete),
        1 => (any::<usize>(), 1..40usize).prop_map(|(at, length)| Mutation::Repeat(at, length)),
        1 => any::<usize>().prop_map(Mutation::Cut),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let all = bytes.len();
    let place = |at: usize| at % all.max(1);
    match *mutation {
        _ if bytes.is_empty() => {}
        Mutation::Flip(at, bit) => bytes[place(at)] ^= 1 << bit,
        Mutation::Replace(at, to) => bytes[place(at)] = to,
        Mutation::Insert(at, it) => bytes.insert(place(at), it),
        Mutation::Delete(at) => drop(bytes.remove(place(at))),
        Mutation::Repeat(at, length) => {
            let start = place(at);
            let part = bytes[start..all.min(start + length)].to_vec();
            bytes.splice(start..start, part);
        }
        Mutation::Cut(at) => bytes.truncate(place(at)),
    }
}

/// Puts in the signature over what stock reads, so that only the form decides.
pub(super) fn sign_again(bytes: &mut [u8], seed: &[u8; 32]) {
    let Ok(mut header) = decode_cbor::<Stock, _>(&*bytes) else {
        return;
    };
    header.sign(&SigningKey::from_bytes(seed));
    let signature = header.signature.expect("it was just signed").to_bytes();
    if let Some(place) = bytes.get_mut(38..102) {
        place.copy_from_slice(&signature);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_stock_signs_is_read_alike(draft in draft(), seed: [u8; 32]) {
        let theirs = stock_header(&draft, &seed);
        let ours = Operation::decode(Line::V06, theirs.to_bytes().into(), None)?;
        prop_assert_eq!(ours.verify(), Ok(()));
        prop_assert_eq!(Hash::from_bytes(*ours.id().as_bytes()), theirs.hash());
        prop_assert_eq!(*ours.author().as_bytes(), <[u8; 32]>::from(theirs.verifying_key));
        prop_assert_eq!(ours.payload_size(), theirs.payload_size);
        prop_assert_eq!(ours.payload_hash(), theirs.payload_hash.map(|it| *it.as_bytes()));
        prop_assert_eq!(ours.timestamp_micros(), u64::from(theirs.timestamp));
        prop_assert_eq!(u64::from(ours.seq()), theirs.seq_num);
        prop_assert_eq!(
            ours.backlink().map(|it| *it.as_bytes()),
            theirs.backlink.map(|it| *it.as_bytes())
        );
        prop_assert_eq!(Hash::from_bytes(*ours.log_id().as_bytes()), theirs.extensions.log_id);
        prop_assert_eq!(ours.prune(), theirs.extensions.prune_flag.is_set());
    }

    #[test]
    fn what_we_sign_is_what_stock_signs(draft in draft(), seed: [u8; 32]) {
        let theirs = stock_header(&draft, &seed);
        let ours = Operation::sign(draft, &AuthorKey::from_bytes(&seed))?;
        prop_assert_eq!(ours.header(), &theirs.to_bytes());
        prop_assert_eq!(stock_id(ours.header()), Some(*ours.id().as_bytes()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn mutated_bytes_are_judged_as_stock_judges_them(
        draft in draft(),
        seed: [u8; 32],
        mutations in prop::collection::vec(mutation(), 1..3),
        signed_again in prop::bool::weighted(0.8),
    ) {
        let mut bytes = stock_header(&draft, &seed).to_bytes();
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        if signed_again {
            sign_again(&mut bytes, &seed);
        }
        assert_no_laxer_than_stock(&bytes)?;
    }

    #[test]
    fn strange_numbers_are_judged_as_stock_judges_them(
        draft in draft(),
        seed: [u8; 32],
        payload_size in number(),
        seq in number(),
        version in prop_oneof![4 => Just(1), 1 => number()],
        extensions_version in prop_oneof![4 => Just(1), 1 => number()],
    ) {
        let mut header = stock_header(&draft, &seed);
        (header.payload_size, header.seq_num) = (payload_size, seq);
        (header.version, header.extensions.version) = (version, extensions_version);
        header.sign(&SigningKey::from_bytes(&seed));
        assert_no_laxer_than_stock(&header.to_bytes())?;
    }

    #[test]
    fn strange_keys_and_signatures_are_judged_as_stock_judges_them(
        key in strange_point(),
        nonce in strange_point(),
        scalar in strange_scalar(),
    ) {
        let mut bytes = stock_header(
            &Draft::first(Line::V06, Topic::named("x").log_id(), 0, None),
            &[1; 32],
        )
        .to_bytes();
        bytes[4..36].copy_from_slice(&key);
        bytes[38..70].copy_from_slice(&nonce);
        bytes[70..102].copy_from_slice(&scalar);
        let stock = decode_cbor::<Stock, _>(&bytes[..]);
        prop_assert_eq!(stock.is_ok(), VerifyingKey::from_bytes(&key).is_ok());
        assert_no_laxer_than_stock(&bytes)?;
    }
}

/// Encodings of points: of small order, not reduced, on the curve and off it.
fn strange_point() -> impl Strategy<Value = [u8; 32]> {
    let mut one = [0; 32];
    one[0] = 1;
    let mut minus_one = [0xff; 32];
    (minus_one[0], minus_one[31]) = (0xec, 0x7f);
    let above = |by: u8| {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xed + by, 0x7f);
        bytes
    };
    let order_eight = [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ];
    let author = *AuthorKey::from_bytes(&[1; 32]).author().as_bytes();
    let point = prop_oneof![
        prop::sample::select(vec![[0; 32], one, minus_one, order_eight, author]),
        (0..18u8).prop_map(above),
        any::<[u8; 32]>(),
    ];
    (point, any::<bool>()).prop_map(|(mut point, sign)| {
        point[31] ^= u8::from(sign) << 7;
        point
    })
}

/// Zero, small ones, around the group's order, and any.
fn strange_scalar() -> impl Strategy<Value = [u8; 32]> {
    let mut order = [0; 32];
    order[..16].copy_from_slice(&[
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14,
    ]);
    order[31] = 0x10;
    prop_oneof![
        Just([0; 32]),
        (0..4u8).prop_map(|it| {
            let mut bytes = [0; 32];
            bytes[0] = it;
            bytes
        }),
        (0..4u8).prop_map(move |it| {
            let mut bytes = order;
            bytes[0] = bytes[0] - 2 + it;
            bytes
        }),
        any::<[u8; 32]>(),
    ]
}
