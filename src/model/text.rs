//! Byte-level text: a token is a byte, and a stream of bytes becomes text without splitting characters.

/// Number of tokens of a byte-level model.
pub const BYTE_VOCAB: usize = 256;

/// The tokens of a text: its bytes.
pub fn bytes_to_tokens(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|&byte| u32::from(byte)).collect()
}

/// The bytes of tokens; `None` where one is not below [`BYTE_VOCAB`].
pub fn tokens_to_bytes(tokens: &[u32]) -> Option<Vec<u8>> {
    tokens.iter().map(|&token| u8::try_from(token).ok()).collect()
}

/// Turns bytes that come piece by piece into text.
///
/// A character whose bytes have not all come is held back. Bytes that are no UTF-8 become U+FFFD, as in [`String::from_utf8_lossy`]: all
/// pieces together are the lossy text of all bytes together, however they were cut.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The beginning of a character, at most three bytes between calls.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// A stream that has seen nothing.
    pub fn new() -> Utf8Stream {
        Utf8Stream::default()
    }

    /// Takes more bytes and gives the text that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while let Err(error) = core::str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            rest = after;
            // No length: the bytes end inside a character.
            let Some(broken) = error.error_len() else { break };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[broken..];
        }
        let held = match core::str::from_utf8(rest) {
            Ok(all) => {
                text.push_str(all);
                Vec::new()
            }
            Err(_) => rest.to_vec(),
        };
        self.pending = held;
        text
    }

    /// Ends the stream: U+FFFD where the last character is not whole, nothing else.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rng::Rng;

    #[test]
    fn tokens_are_bytes() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(tokens_to_bytes(&bytes_to_tokens(&all)).unwrap(), all);
        assert_eq!(tokens_to_bytes(&[65, 256]), None);
    }

    #[test]
    fn a_character_comes_whole() {
        let mut stream = Utf8Stream::new();
        let pieces: Vec<String> = "aé€😀".bytes().map(|byte| stream.push(&[byte])).collect();
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "😀"]);
        assert_eq!(stream.finish(), "");
        assert_eq!(stream.push(&[0xF0, 0x9F]), "");
        assert_eq!((stream.finish(), stream.finish()), ("\u{FFFD}".to_string(), String::new()));
    }

    #[test]
    fn any_cut_gives_the_lossy_text() {
        // Lead bytes, continuation bytes, impossible bytes and ASCII in random order hit every broken sequence.
        let alphabet = [b'a', 0x80, 0xBF, 0xC0, 0xC3, 0xA9, 0xE0, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F, 0x98, 0xF4, 0xF5, 0xFF];
        let mut rng = Rng::new(11);
        for _ in 0..3000 {
            let length = rng.below(12) as usize;
            let bytes: Vec<u8> = (0..length).map(|_| alphabet[rng.below(alphabet.len() as u64) as usize]).collect();
            let (mut stream, mut text, mut rest) = (Utf8Stream::new(), String::new(), bytes.as_slice());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(1 + rng.below(rest.len() as u64) as usize);
                text += &stream.push(piece);
                rest = after;
            }
            text += &stream.finish();
            assert_eq!(text, String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }
}
