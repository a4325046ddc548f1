//! What became of a batch, as bytes.

use bytes::{BufMut, BytesMut};

use super::{
    super::super::codec::{PostcardReader, PostcardWrite, WireFault},
    PushOutcome, PushRefused, PushRule, RUN_OPERATIONS_MAX, TEXT_MAX, cut, within,
};

const APPENDED: u8 = 0;
const HELD: u8 = 1;
const REFUSED: u8 = 2;

/// Consecutive numbers are written as one.
pub(super) fn write_outcomes(to: &mut BytesMut, outcomes: &[PushOutcome]) {
    use PushOutcome::{Appended, Held, Refused};
    let mut runs: Vec<(&PushOutcome, u64)> = Vec::new();
    for outcome in outcomes {
        match (runs.last_mut(), outcome) {
            (Some((Appended { number: first }, count)), Appended { number })
            | (Some((Held { number: first }, count)), Held { number })
                if first.checked_add(*count) == Some(*number) =>
            {
                *count += 1;
            }
            _ => runs.push((outcome, 1)),
        }
    }
    to.uint(runs.len() as u64);
    for (outcome, count) in runs {
        match outcome {
            Appended { number } | Held { number } => {
                let held = matches!(outcome, Held { .. });
                to.put_u8(if held { HELD } else { APPENDED });
                to.uint(*number);
                to.uint(count);
            }
            Refused(refused) => {
                to.put_u8(REFUSED);
                to.put_u8(refused.rule.code());
                PostcardWrite::bytes(to, cut(&refused.text).as_bytes());
            }
        }
    }
}

pub(super) fn read_outcomes(
    reader: &mut PostcardReader<'_>,
) -> Result<Vec<PushOutcome>, WireFault> {
    let mut outcomes = Vec::new();
    let room = |claimed: u64| within("outcomes", claimed, RUN_OPERATIONS_MAX);
    for _ in 0..reader.uint()? {
        let kind = reader.byte()?;
        if kind == REFUSED {
            room(outcomes.len() as u64 + 1)?;
            outcomes.push(PushOutcome::Refused(PushRefused {
                rule: PushRule::of_code(reader.byte()?),
                text: read_text(reader)?,
            }));
            continue;
        }
        let (first, count) = (reader.uint()?, reader.uint()?);
        room(count.saturating_add(outcomes.len() as u64))?;
        if count == 0 || first.checked_add(count).is_none() {
            return Err(WireFault::Malformed("an impossible run of outcomes"));
        }
        for number in first..first + count {
            outcomes.push(match kind {
                APPENDED => PushOutcome::Appended { number },
                HELD => PushOutcome::Held { number },
                _ => return Err(WireFault::Malformed("an unknown outcome")),
            });
        }
    }
    Ok(outcomes)
}

pub(super) fn read_text(reader: &mut PostcardReader<'_>) -> Result<String, WireFault> {
    let text = reader.text()?;
    if text.len() > TEXT_MAX {
        return Err(WireFault::TooLarge {
            claimed: text.len() as u64,
            limit: TEXT_MAX,
        });
    }
    Ok(text.to_owned())
}
