//! Faults that are planted are found.

use super::*;

/// A list of byte strings, as somebody in a hurry reads it.
fn read_hastily(
    bytes: &[u8],
    trusts_lengths: bool,
    takes_what_is_said: bool,
) -> Option<Vec<Vec<u8>>> {
    let number = |at: &mut usize| {
        let first = *bytes.get(*at)?;
        let width = match first & 0x1f {
            small @ 0..24 => {
                *at += 1;
                return Some(u64::from(small));
            }
            wide @ 24..28 => 1 << (wide - 24),
            _ => return None,
        };
        let argument = bytes.get(*at + 1..*at + 1 + width)?;
        *at += 1 + width;
        Some(
            argument
                .iter()
                .fold(0, |sum: u64, it| sum << 8 | u64::from(*it)),
        )
    };
    let mut at = 0;
    let count = number(&mut at)?;
    let mut found = Vec::new();
    if takes_what_is_said {
        found.reserve(count.min(1 << 20) as usize);
    }
    for _ in 0..count {
        let length = number(&mut at)? as usize;
        let part = match trusts_lengths {
            true => &bytes[at..at.checked_add(length)?],
            false => bytes.get(at..at.checked_add(length)?)?,
        };
        found.push(part.to_vec());
        at += length;
    }
    Some(found)
}

fn fuzz() -> Fuzz {
    Fuzz::new(
        "hasty",
        Shape::Cbor,
        [b"\x82\x43abc\x42de".to_vec(), b"\x80".to_vec()],
    )
}

#[test]
fn a_length_that_is_trusted_is_found() {
    let found = fuzz().find(|bytes| drop(read_hastily(bytes, true, false)));
    let found = found.expect("it reads beyond its input");
    assert!(found.starts_with("hasty, input "), "{found}");
    assert_eq!(
        fuzz().find(|bytes| drop(read_hastily(bytes, true, false))),
        Some(found)
    );
}

#[test]
fn room_that_is_taken_for_what_is_said_is_found() {
    let check = |bytes: &[u8]| drop(bounded(bytes, || read_hastily(bytes, false, true)));
    assert!(fuzz().find(check).is_some());
}

#[test]
fn what_is_in_order_is_not_found() {
    let check = |bytes: &[u8]| drop(bounded(bytes, || read_hastily(bytes, false, false)));
    assert_eq!(fuzz().find(check), None);
}

#[test]
fn frames_keep_lengths_that_fit_most_of_the_time() {
    let corpus = [vec![0, 0, 0, 2, 7, 7, 0, 0, 0, 1, 9]];
    let fits = |bytes: &[u8]| {
        let mut rest = bytes;
        while let Some((head, behind)) = rest.split_first_chunk::<4>() {
            let Some(behind) = behind.get(u32::from_be_bytes(*head) as usize..) else {
                return false;
            };
            rest = behind;
        }
        rest.is_empty()
    };
    let inputs = (0..400).map(|number| mutate(&mut Dice::of(1, number), Shape::Framed, &corpus));
    let fitting = inputs.filter(|it| fits(it)).count();
    assert!((300..400).contains(&fitting), "{fitting} of 400");
}

#[test]
fn a_stream_is_cut_at_each_place() {
    let bytes: Vec<u8> = (0..20).collect();
    let cuts = cuts(&bytes);
    assert!(cuts.iter().all(|it| it.concat() == bytes));
    assert!((0..=20).all(|at| cuts.iter().any(|it| it[0].len() == at)));
}
