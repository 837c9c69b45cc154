//! Exif blocks with two texts, for JPEG and WebP: how an image was made, as JSON in `ImageDescription`, and what web
//! interfaces read, in `UserComment`.

use std::io::{self, Read};

/// `ImageDescription`
const DESCRIPTION: u16 = 0x010e;
/// Where the second directory begins.
const EXIF_DIRECTORY: u16 = 0x8769;
/// `UserComment`
const USER_COMMENT: u16 = 0x9286;
const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;
/// The first bytes of a comment in UTF-16.
const UNICODE: &[u8; 8] = b"UNICODE\0";

/// Returns the block, in little-endian TIFF. `description` must be ASCII.
pub fn block(description: &str, comment: &str) -> Vec<u8> {
    let mut text = description.as_bytes().to_vec();
    text.push(0);
    let mut user = UNICODE.to_vec();
    user.extend(comment.encode_utf16().flat_map(u16::to_le_bytes));
    // The header, a directory of two entries, one of one entry, then what they point at.
    let (first, second) = (8u32, 8 + 2 + 2 * 12 + 4);
    let texts = second + 2 + 12 + 4;
    let lengths = (text.len() as u32, user.len() as u32);
    let mut block = b"II*\0".to_vec();
    block.extend(first.to_le_bytes());
    directory(&mut block, &[(DESCRIPTION, ASCII, lengths.0, texts), (EXIF_DIRECTORY, LONG, 1, second)]);
    directory(&mut block, &[(USER_COMMENT, UNDEFINED, lengths.1, texts + lengths.0)]);
    block.extend(text);
    block.extend(user);
    block
}

fn directory(block: &mut Vec<u8>, entries: &[(u16, u16, u32, u32)]) {
    block.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        block.extend(tag.to_le_bytes());
        block.extend(kind.to_le_bytes());
        block.extend(count.to_le_bytes());
        block.extend(value.to_le_bytes());
    }
    block.extend(0u32.to_le_bytes());
}

/// Returns the block of a JPEG; `None` if it has none.
///
/// # Errors
/// The system's error; [`io::ErrorKind::InvalidData`] if it is no JPEG.
pub fn of_jpeg(mut file: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut marker = [0; 2];
    file.read_exact(&mut marker)?;
    if marker != [0xff, 0xd8] {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no JPEG"));
    }
    // Segments with a length each, up to the image itself.
    loop {
        let mut head = [0; 4];
        file.read_exact(&mut head)?;
        let [0xff, kind, high, low] = head else { return Ok(None) };
        if kind == 0xda {
            return Ok(None);
        }
        let mut segment = vec![0; usize::from(u16::from_be_bytes([high, low])).saturating_sub(2)];
        file.read_exact(&mut segment)?;
        if kind == 0xe1 && segment.starts_with(b"Exif\0\0") {
            return Ok(Some(segment));
        }
    }
}

/// Returns the `ImageDescription` of a block.
pub fn description(block: &[u8]) -> Option<String> {
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let is_little = match block.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = block.get(at..at.checked_add(len)?)?.iter();
        let join = |number: usize, byte: &u8| number << 8 | usize::from(*byte);
        Some(if is_little { bytes.rev().fold(0, join) } else { bytes.fold(0, join) })
    };
    let directory = number(4, 4)?;
    let count = number(directory, 2)?;
    let entry =
        (0..count).map(|i| directory + 2 + 12 * i).find(|at| number(*at, 2) == Some(DESCRIPTION.into()))?;
    let (len, at) = (number(entry + 4, 4)?, number(entry + 8, 4)?);
    let text = block.get(at..at.checked_add(len)?)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read_back_and_broken_blocks_are_none() {
        let whole = block(r#"{"a": 1}"#, "猫\nSteps: 3");
        assert_eq!(description(&whole).unwrap(), r#"{"a": 1}"#);
        let with_header = [b"Exif\0\0", whole.as_slice()].concat();
        assert_eq!(description(&with_header).unwrap(), r#"{"a": 1}"#);
        for len in 0..whole.len() {
            // Nothing that is cut off makes it panic.
            let _ = description(&whole[..len]);
        }
        assert_eq!(description(b"II*\0\xff\xff\xff\xff"), None);
        assert_eq!(description(b""), None);
    }
}
