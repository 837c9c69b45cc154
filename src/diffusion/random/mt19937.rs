//! The Mersenne Twister, as torch and numpy both seed and run it.
//!
//! Source: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998), with the seeding of 2002.

const LENGTH: usize = 624;
const SHIFT: usize = 397;

/// The generator's 624 words and the next one to hand out.
#[derive(Debug, Clone)]
pub(super) struct Mt19937 {
    words: [u32; LENGTH],
    next: usize,
}

impl Mt19937 {
    /// Returns a generator seeded with one word.
    pub(super) fn new(seed: u32) -> Self {
        let mut words = [seed; LENGTH];
        for i in 1..LENGTH {
            let before = words[i - 1];
            words[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { words, next: LENGTH }
    }

    /// Returns the next 32 bits.
    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == LENGTH {
            self.twist();
        }
        let mut y = self.words[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..LENGTH {
            let y = (self.words[i] & 0x8000_0000) | (self.words[(i + 1) % LENGTH] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[i] = self.words[(i + SHIFT) % LENGTH] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}
