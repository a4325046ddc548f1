//! Secrets as text: a prefix, lower-case base32, and a checksum that tells a typing error from a
//! wrong secret.
//!
//! ```text
//! text = prefix ‖ base32(body ‖ check)       RFC 4648 alphabet in lower case, no padding
//! check = first 4 bytes of SHA-256(prefix ‖ body)
//! ```
//!
//! Upper case is refused, so one secret has one text.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of the checksum. Frozen format.
const CHECK_BYTES: usize = 4;

/// How long the text of a body of this many bytes is.
pub(super) const fn text_bytes(prefix: &str, body: usize) -> usize {
    prefix.len() + ((body + CHECK_BYTES) * 8).div_ceil(5)
}

/// Writes `body` as text.
pub(super) fn encode(prefix: &str, body: &[u8]) -> Zeroizing<String> {
    // Room for everything at once: a buffer that grows would leave copies of the secret behind.
    let mut sealed = Zeroizing::new(Vec::with_capacity(body.len() + CHECK_BYTES));
    sealed.extend_from_slice(body);
    sealed.extend_from_slice(&check(prefix, body));
    let mut text = Zeroizing::new(String::with_capacity(text_bytes(prefix, body.len())));
    text.push_str(prefix);
    BASE32_NOPAD.encode_append(&sealed, &mut text);
    text.make_ascii_lowercase();
    text
}

/// Reads the body back. Whitespace around the text is skipped; the caller limits its length.
pub(super) fn decode(prefix: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, ArmorError> {
    let digits = text.trim().strip_prefix(prefix).ok_or(ArmorError::Prefix)?;
    if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
        return Err(ArmorError::Damaged);
    }
    let digits = Zeroizing::new(digits.to_ascii_uppercase());
    let mut body = BASE32_NOPAD
        .decode(digits.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| ArmorError::Damaged)?;
    let length = body
        .len()
        .checked_sub(CHECK_BYTES)
        .ok_or(ArmorError::Damaged)?;
    if body[length..] != check(prefix, &body[..length]) {
        return Err(ArmorError::Damaged);
    }
    body.truncate(length);
    Ok(body)
}

fn check(prefix: &str, body: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = Sha256::new()
        .chain_update(prefix)
        .chain_update(body)
        .finalize();
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hash[..CHECK_BYTES]);
    check
}

/// What is wrong with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArmorError {
    /// It starts otherwise.
    Prefix,
    /// A digit outside the alphabet, a wrong length, or a checksum that does not match.
    Damaged,
}
