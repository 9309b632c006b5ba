//! Fixes frames that lapin cannot read.
//!
//! AMQP requires names and short strings in UTF-8, but RabbitMQ forwards whatever a publisher sends.
//! lapin 4.12.3 ends the connection on such a frame. The message could then neither be settled nor
//! dead-lettered: it would be redelivered again and again, and block the messages behind it. So each
//! frame is fixed before lapin reads it.

use std::mem;

/// Replaces each byte that is not UTF-8. No valid name contains this character, so a fixed message is
/// never mistaken for an event with another name.
const SUBSTITUTE: u8 = 0x1a;
/// How deep tables and arrays may be nested. lapin reads them recursively, and a depth of twelve
/// thousand overflows the stack of the process.
const DEPTH: u8 = 16;

/// A frame begins with its kind, its channel and the size of its payload, and ends with one byte.
const HEAD: usize = 7;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const HEARTBEAT: u8 = 8;
/// A header frame's payload begins with class, weight and body size; the properties follow.
const CONTENT: usize = 12;
/// The payload of a header frame without properties: with the flags that list the properties.
const BARE: u8 = 14;
/// A larger frame is passed on unread. RabbitMQ's frames have up to 128 KiB by default.
const LARGEST: usize = 16 << 20;
/// How many bytes a read may take.
const ROOM: usize = 64 << 10;

/// A buffer between the socket and lapin, which passes on whole frames.
#[derive(Default)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    /// The end of the bytes that lapin has read.
    given: usize,
    /// The end of the whole, fixed frames.
    whole: usize,
    /// The end of the received bytes.
    end: usize,
    /// Whether the bytes are not AMQP frames, and are passed on unchanged.
    raw: bool,
}

impl Frames {
    /// The space for received bytes.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.given..self.end, 0);
        (self.whole, self.end) = (self.whole - self.given, self.end - self.given);
        self.given = 0;
        if self.buffer.len() < self.end + ROOM {
            self.buffer.resize(self.end + ROOM, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Takes `length` bytes that were put there; 0 means the end of the connection.
    pub(crate) fn received(&mut self, length: usize) {
        self.end += length;
        self.raw |= length == 0;
        while !self.raw && self.fix_next() {}
        if self.raw {
            self.whole = self.end;
        }
    }

    /// Copies bytes of whole frames to `to`, and returns their number.
    pub(crate) fn give(&mut self, to: &mut [u8]) -> usize {
        let length = to.len().min(self.whole - self.given);
        to[..length].copy_from_slice(&self.buffer[self.given..][..length]);
        self.given += length;
        length
    }

    /// Fixes the next frame. Returns false if it is not whole yet.
    fn fix_next(&mut self) -> bool {
        let rest = &mut self.buffer[self.whole..self.end];
        let Some(&[kind, _, _, a, b, c, d]) = rest.first_chunk::<HEAD>() else { return false };
        let size = u32::from_be_bytes([a, b, c, d]).try_into().unwrap_or(usize::MAX);
        if !(METHOD..=HEARTBEAT).contains(&kind) || size > LARGEST {
            self.raw = true;
            return false;
        }
        let Some(frame) = rest.get_mut(HEAD..=HEAD + size) else { return false };
        let payload = &mut frame[..size];
        let size = match kind {
            METHOD => {
                // `None` means another method than a delivery.
                let _: Option<()> = fix_delivery(payload);
                size
            }
            HEADER if size >= BARE.into() && fix_properties(payload).is_none() => {
                self.remove_properties(size)
            }
            _ => size,
        };
        self.whole += HEAD + size + 1;
        true
    }

    /// Removes the properties of the next frame, and returns its new size. Without them, the message
    /// becomes a dead letter.
    fn remove_properties(&mut self, size: usize) -> usize {
        let (payload, bare) = (self.whole + HEAD, usize::from(BARE));
        self.buffer[payload - 4..payload].copy_from_slice(&[0, 0, 0, BARE]);
        self.buffer[payload + CONTENT..payload + bare].fill(0);
        self.buffer.copy_within(payload + size..self.end, payload + bare);
        self.end -= size - bare;
        bare
    }
}

/// Fixes the exchange and the routing key of a `basic.deliver`.
fn fix_delivery(payload: &mut [u8]) -> Option<()> {
    let mut fields = Fields(payload);
    if fields.take(4)? != [0, 60, 0, 60] {
        return None;
    }
    fields.short_string()?;
    // The delivery tag, and whether it is a redelivery.
    fields.take(9)?;
    fields.short_string()?;
    fields.short_string()
}

/// Fixes the properties of a message; `None` when they cannot be read.
fn fix_properties(payload: &mut [u8]) -> Option<()> {
    let mut fields = Fields(payload);
    fields.take(CONTENT)?;
    let flags = u16::from_be_bytes(*fields.take(2)?.first_chunk()?);
    for property in 0..14 {
        match property {
            _ if flags & (0x8000 >> property) == 0 => {}
            2 => fields.table(DEPTH)?,
            // Delivery mode and priority.
            3 | 4 => drop(fields.take(1)?),
            // The timestamp.
            9 => drop(fields.take(8)?),
            _ => fields.short_string()?,
        }
    }
    fields.0.is_empty().then_some(())
}

/// The unread rest of a payload.
struct Fields<'p>(&'p mut [u8]);

impl<'p> Fields<'p> {
    fn take(&mut self, length: usize) -> Option<&'p mut [u8]> {
        let (taken, rest) = mem::take(&mut self.0).split_at_mut_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn length(&mut self) -> Option<usize> {
        u32::from_be_bytes(*self.take(4)?.first_chunk()?).try_into().ok()
    }

    fn short_string(&mut self) -> Option<()> {
        let length = self.byte()?.into();
        let text = self.take(length)?;
        while let Err(error) = str::from_utf8(text) {
            text[error.valid_up_to()] = SUBSTITUTE;
        }
        Some(())
    }

    fn table(&mut self, depth: u8) -> Option<()> {
        let length = self.length()?;
        let mut fields = Fields(self.take(length)?);
        while !fields.0.is_empty() {
            fields.short_string()?;
            fields.value(depth)?;
        }
        Some(())
    }

    fn array(&mut self, depth: u8) -> Option<()> {
        let length = self.length()?;
        let mut values = Fields(self.take(length)?);
        while !values.0.is_empty() {
            values.value(depth)?;
        }
        Some(())
    }

    /// Skips a value. The types are RabbitMQ's, which differ from the specification.
    fn value(&mut self, depth: u8) -> Option<()> {
        let length = match self.byte()? {
            b'F' => return self.table(depth.checked_sub(1)?),
            b'A' => return self.array(depth.checked_sub(1)?),
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'S' | b'x' => self.length()?,
            _ => return None,
        };
        self.take(length).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::basic::parse_properties;
    use lapin::types::ShortString;
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1], &size[..], payload, &[0xce]].concat()
    }

    fn header(properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3], properties].concat())
    }

    /// What lapin reads when the bytes arrive in pieces.
    fn through(sent: &[u8], piece: usize) -> Vec<u8> {
        let mut frames = Frames::default();
        let (mut given, mut buffer) = (Vec::new(), [0; 5]);
        for piece in sent.chunks(piece).chain([&[][..]]) {
            frames.room()[..piece.len()].copy_from_slice(piece);
            frames.received(piece.len());
            loop {
                let length = frames.give(&mut buffer);
                if length == 0 {
                    break;
                }
                given.extend_from_slice(&buffer[..length]);
            }
        }
        given
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        let delivery = |key: &[u8]| {
            frame(METHOD, &[b"\0\x3c\0\x3c\x01c\0\0\0\0\0\0\0\xff\0\x01e\x04", key].concat())
        };
        let of_type = |kind: &[u8]| {
            header(&[b"\x20\x20\0\0\0\x09\x02", kind, b"S\0\0\0\x01\xff\x02", kind].concat())
        };
        let body = frame(3, b"\xe4\xe4\xe4");
        let sent =
            [delivery(b"\xe4.\xc3\xa4"), of_type(b"\xe4b"), body.clone(), of_type(b"\xc3\xa4")]
                .concat();
        let fixed =
            [delivery(b"\x1a.\xc3\xa4"), of_type(b"\x1ab"), body, of_type(b"\xc3\xa4")].concat();
        for piece in [1, 2, 7, 30, 1000] {
            assert_eq!(through(&sent, piece), fixed, "in pieces of {piece}");
        }
    }

    #[test]
    fn unreadable_properties_are_removed() {
        let next = frame(3, b"abc");
        let mut deep = vec![b'V'];
        for _ in 0..=DEPTH {
            let size = u32::try_from(deep.len()).unwrap().to_be_bytes();
            deep = [b"A", &size[..], &deep].concat();
        }
        let size = u32::try_from(deep.len() + 2).unwrap().to_be_bytes();
        let deep = [b"\x20\0", &size[..], b"\x01a", &deep].concat();
        let unknown = b"\x20\0\0\0\0\x03\x01a?";
        let bytes_left = b"\0\0left";
        let bytes_missing = b"\x80\0\x09short";
        for properties in [&deep[..], unknown, bytes_left, bytes_missing] {
            let sent = [header(properties), next.clone()].concat();
            let bare = [header(&[0, 0]), next.clone()].concat();
            for piece in [1, 1000] {
                assert_eq!(through(&sent, piece), bare, "{properties:?}");
            }
        }
    }

    #[test]
    fn bytes_that_are_not_frames_are_passed_on() {
        for sent in [
            &b"AMQP\0\0\x09\x01"[..],
            b"HTTP/1.1 400 Bad Request",
            b"\x03\0\x01\xff\xff\xff\xffabc",
            b"\x01",
        ] {
            assert_eq!(through(sent, 3), sent);
        }
    }

    proptest! {
        /// lapin can read every fixed frame.
        #[test]
        fn lapin_reads_fixed_frames(
            flags in any::<u16>(),
            properties in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(b'S'), Just(b'F'), any::<u8>()], 0..60),
        ) {
            let given = through(&header(&[&flags.to_be_bytes()[..], &properties].concat()), 1000);
            let properties = &given[HEAD + CONTENT..given.len() - 1];
            let (rest, _) = parse_properties(properties).unwrap();
            prop_assert!(rest.is_empty());
        }

        /// Frames that lapin writes are not changed.
        #[test]
        fn good_properties_stay(kind in ".{0,60}", id in ".{0,60}", time in any::<u64>(), mode in any::<u8>()) {
            let short = |text: String| ShortString::try_new(text).unwrap_or_default();
            let properties = lapin::BasicProperties::default()
                .with_type(short(kind)).with_message_id(short(id)).with_timestamp(time).with_delivery_mode(mode);
            let written = lapin::protocol::basic::gen_properties(&properties)(Vec::new().into()).unwrap().write;
            let sent = header(&written);
            prop_assert_eq!(through(&sent, 1000), sent);
        }
    }
}
