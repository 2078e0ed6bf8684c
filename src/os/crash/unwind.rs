//! Walks up a stack by the unwind tables (`.eh_frame`) of the code that is on it, without heap and
//! locks.
//!
//! The unwinder of the language's runtime does the same, but it may take the loader's lock, and it
//! dies of a stack that is spoilt. Here every read is [checked](Peek), and what is not understood
//! ends the walk.
//!
//! The format is that of the Linux Standard Base (`.eh_frame`, `.eh_frame_hdr`), with the DWARF
//! numbers of registers of the x86-64 psABI.

use super::maps::Maps;
use super::peek::Peek;

/// Numbers of registers.
pub(super) const RBP: usize = 6;
pub(super) const RSP: usize = 7;
pub(super) const PC: usize = 16;
/// How many registers there are.
pub(super) const REGISTERS: usize = 17;

/// The registers by their numbers. 0 if unknown.
pub(super) type Registers = [usize; REGISTERS];

/// Where the registers lie in the kernel's record of a signal, from the start of `ucontext`, in the
/// order of their numbers: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15, rip.
const SAVED_AT: [usize; REGISTERS] = [
    144, 136, 152, 128, 112, 104, 120, 160, 40, 48, 56, 64, 72, 80, 88, 96, 168,
];
/// Where `siginfo` lies, from the start of `ucontext`, and the address in it.
const INFO_AT: usize = 304;
const ADDRESS_AT: usize = 16;

/// Instructions of one table entry that are looked at, in bytes.
const MOST_BYTES: usize = 4_096;

/// What is found on the way up.
pub(super) enum Step {
    /// A frame, by the address in its code.
    Frame(usize),
    /// A signal's handler was called here.
    Signal {
        number: u32,
        address: usize,
        /// The stack pointer of the code that the signal interrupted.
        stack: usize,
    },
}

/// How a register of the caller is found.
#[derive(Clone, Copy)]
enum Rule {
    Same,
    Unknown,
    /// In memory, this far from the frame's address.
    At(isize),
    /// The frame's address and this.
    Is(isize),
    /// In another register.
    In(usize),
}

/// What a table says for one address in the code.
#[derive(Clone, Copy)]
struct Row {
    /// The register and the distance that make the frame's address; `None` if an expression does.
    frame: Option<(usize, isize)>,
    rules: [Rule; REGISTERS],
}

/// The rows that instructions keep for later.
const KEPT: usize = 4;

/// Room for a walk.
pub(super) struct Walk {
    peek: Peek,
    row: Row,
    first: Row,
    kept: [Row; KEPT],
    kept_len: usize,
}

const NO_ROW: Row = Row {
    frame: None,
    rules: [Rule::Same; REGISTERS],
};

/// What all functions of a table have in common.
struct Common {
    code_align: usize,
    data_align: isize,
    return_register: usize,
    encoding: u8,
    has_extra: bool,
    is_signal: bool,
    /// The instructions that come before those of a function.
    start: usize,
    end: usize,
}

impl Walk {
    pub(super) const fn new() -> Self {
        Self {
            peek: Peek::new(),
            row: NO_ROW,
            first: NO_ROW,
            kept: [NO_ROW; KEPT],
            kept_len: 0,
        }
    }

    /// Calls `take` for each frame, from the innermost outwards, until it returns false or the walk
    /// is at its end.
    pub(super) fn up(
        &mut self,
        maps: &Maps,
        mut registers: Registers,
        mut take: impl FnMut(Step) -> bool,
    ) {
        self.peek.forget();
        // Whether the address is that of the next instruction to run, and not a return address,
        // which may belong to the code behind the call.
        let mut is_exact = true;
        loop {
            if registers[PC] == 0 || !take(Step::Frame(registers[PC])) {
                return;
            }
            let at = registers[PC].wrapping_sub(usize::from(!is_exact));
            let Some((next, is_signal)) = self.caller(maps, &registers, at, is_exact) else {
                return;
            };
            if is_signal {
                let info = registers[RSP].wrapping_add(INFO_AT);
                let (Some(number), Some(address)) = (
                    self.peek.u32(info),
                    self.peek.word(info.wrapping_add(ADDRESS_AT)),
                ) else {
                    return;
                };
                let stack = next[RSP];
                if !take(Step::Signal {
                    number,
                    address,
                    stack,
                }) {
                    return;
                }
            } else if next[RSP] <= registers[RSP] {
                // It would go in circles. Handlers have stacks of their own.
                return;
            }
            is_exact = is_signal;
            registers = next;
        }
    }

    /// Returns the registers of the caller, and whether that is code that a signal interrupted.
    fn caller(
        &mut self,
        maps: &Maps,
        registers: &Registers,
        at: usize,
        is_innermost: bool,
    ) -> Option<(Registers, bool)> {
        let Some(module) = maps.find(at) else {
            // A call of what is no code has left its return address.
            if is_innermost {
                return self.after_bad_call(maps, registers);
            }
            return self.by_frame_pointer(maps, registers);
        };
        let base = module.base;
        match self.by_table(base, registers, at) {
            Some(found) => Some(found),
            None => self.by_frame_pointer(maps, registers),
        }
    }

    fn after_bad_call(&mut self, maps: &Maps, registers: &Registers) -> Option<(Registers, bool)> {
        let mut next = *registers;
        next[PC] = self.peek.word(registers[RSP])?;
        next[RSP] = registers[RSP].wrapping_add(8);
        maps.find(next[PC]).map(|_| (next, false))
    }

    /// Follows the chain of frames that code without tables may keep.
    fn by_frame_pointer(
        &mut self,
        maps: &Maps,
        registers: &Registers,
    ) -> Option<(Registers, bool)> {
        let frame = registers[RBP];
        if frame < registers[RSP] || !frame.is_multiple_of(8) {
            return None;
        }
        let mut next = [0; REGISTERS];
        next[RBP] = self.peek.word(frame)?;
        next[PC] = self.peek.word(frame.wrapping_add(8))?;
        next[RSP] = frame.wrapping_add(16);
        maps.find(next[PC]).map(|_| (next, false))
    }

    fn by_table(
        &mut self,
        base: usize,
        registers: &Registers,
        at: usize,
    ) -> Option<(Registers, bool)> {
        let table = self.table(base)?;
        let function = self.function(table, at)?;
        let common = self.row_at(function, at)?;
        if common.is_signal {
            let mut next = [0; REGISTERS];
            for (register, offset) in next.iter_mut().zip(SAVED_AT) {
                *register = self.peek.word(registers[RSP].wrapping_add(offset))?;
            }
            return Some((next, true));
        }
        let (register, distance) = self.row.frame?;
        let frame = registers.get(register)?.wrapping_add_signed(distance);
        let mut next = [0; REGISTERS];
        let rules = self.row.rules;
        for ((rule, register), own) in rules.iter().zip(&mut next).zip(registers) {
            *register = match *rule {
                Rule::Same => *own,
                Rule::Unknown => 0,
                Rule::At(distance) => self.peek.word(frame.wrapping_add_signed(distance))?,
                Rule::Is(distance) => frame.wrapping_add_signed(distance),
                Rule::In(other) => *registers.get(other)?,
            };
        }
        next[PC] = match rules.get(common.return_register)? {
            Rule::At(_) | Rule::Is(_) | Rule::In(_) => *next.get(common.return_register)?,
            // There is no caller.
            Rule::Same | Rule::Unknown => 0,
        };
        next[RSP] = frame;
        Some((next, false))
    }

    /// Returns the address of a module's sorted table, by the headers at the start of its file.
    fn table(&mut self, base: usize) -> Option<usize> {
        const LOAD: u32 = 1;
        const EH_FRAME: u32 = 0x6474_e550;
        if self.peek.bytes(base)? != *b"\x7fELF\x02" {
            return None;
        }
        let headers = base.wrapping_add(self.peek.word(base.wrapping_add(32))?);
        let size = usize::from(self.peek.u16(base.wrapping_add(54))?);
        let count = usize::from(self.peek.u16(base.wrapping_add(56))?);
        let (mut first, mut table) = (None, None);
        for index in 0..count.min(64) {
            let header = headers.wrapping_add(index.wrapping_mul(size));
            let kind = self.peek.u32(header)?;
            let address = self.peek.word(header.wrapping_add(16))?;
            match kind {
                // The segments are in order.
                LOAD if first.is_none() => {
                    let offset = self.peek.word(header.wrapping_add(8))?;
                    first = Some(address.wrapping_sub(offset));
                }
                EH_FRAME => table = Some(address),
                _ => {}
            }
        }
        Some(base.wrapping_sub(first?).wrapping_add(table?))
    }

    /// Returns the address of the entry of the function that may have this address.
    fn function(&mut self, table: usize, at: usize) -> Option<usize> {
        let [version, start, count, entries] = self.peek.bytes(table)?;
        // Other forms are possible, but no linker makes them.
        if version != 1 || start & 0x07 != 0x03 || count != 0x03 || entries != 0x3b {
            return None;
        }
        let count = self.peek.u32(table.wrapping_add(8))? as usize;
        let entry = |index: usize| table.wrapping_add(12).wrapping_add(index.wrapping_mul(8));
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let start = self.relative(entry(middle), table)?;
            if start <= at {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.relative(entry(low.checked_sub(1)?).wrapping_add(4), table)
    }

    fn relative(&mut self, address: usize, to: usize) -> Option<usize> {
        let distance = self.peek.u32(address)?.cast_signed();
        Some(to.wrapping_add_signed(distance as isize))
    }

    /// Finds the row of this address in the function's part of the table. Returns what the function
    /// has in common with others.
    fn row_at(&mut self, function: usize, at: usize) -> Option<Common> {
        let len = self.peek.u32(function)?;
        let pointer = function.wrapping_add(4);
        let end = pointer.wrapping_add(len as usize);
        let distance = self.peek.u32(pointer)?;
        if len == u32::MAX || distance == 0 {
            return None;
        }
        let common = self.common(pointer.wrapping_sub(distance as usize))?;
        let mut cursor = pointer.wrapping_add(4);
        let start = self.encoded(&mut cursor, common.encoding)?;
        // The length has the same size, and is relative to nothing.
        let len = self.encoded(&mut cursor, common.encoding & 0x0f)?;
        if at.wrapping_sub(start) >= len {
            return None;
        }
        if common.has_extra {
            let extra = self.unsigned(&mut cursor)?;
            cursor = cursor.wrapping_add(extra);
        }
        self.row = NO_ROW;
        self.first = NO_ROW;
        self.kept_len = 0;
        self.run(&common, common.start, common.end, None)?;
        self.first = self.row;
        self.run(&common, cursor, end, Some((start, at)))?;
        Some(common)
    }

    fn common(&mut self, entry: usize) -> Option<Common> {
        let len = self.peek.u32(entry)?;
        let end = entry.wrapping_add(4).wrapping_add(len as usize);
        let id = self.peek.u32(entry.wrapping_add(4))?;
        let mut cursor = entry.wrapping_add(8);
        let version = self.next(&mut cursor)?;
        if len == u32::MAX || id != 0 || !matches!(version, 1 | 3) {
            return None;
        }
        let mut letters = [0; 8];
        let mut count = 0;
        loop {
            let letter = self.next(&mut cursor)?;
            if letter == 0 {
                break;
            }
            *letters.get_mut(count)? = letter;
            count += 1;
        }
        let code_align = self.unsigned(&mut cursor)?;
        let data_align = self.signed(&mut cursor)?;
        let return_register = match version {
            1 => usize::from(self.next(&mut cursor)?),
            _ => self.unsigned(&mut cursor)?,
        };
        let mut common = Common {
            code_align,
            data_align,
            return_register,
            encoding: 0,
            has_extra: letters[0] == b'z',
            is_signal: false,
            start: cursor,
            end,
        };
        if !common.has_extra {
            return (count == 0).then_some(common);
        }
        let extra = self.unsigned(&mut cursor)?;
        common.start = cursor.wrapping_add(extra);
        for letter in letters.get(1..count)? {
            match letter {
                b'R' => common.encoding = self.next(&mut cursor)?,
                b'P' => {
                    let encoding = self.next(&mut cursor)?;
                    // Only its size is needed.
                    self.encoded(&mut cursor, encoding & 0x0f)?;
                }
                b'L' => cursor = cursor.wrapping_add(1),
                b'S' => common.is_signal = true,
                b'B' | b'G' => {}
                _ => return None,
            }
        }
        Some(common)
    }

    /// Runs instructions of a table, with `upto` only those that are about addresses from the first
    /// to the second.
    #[allow(clippy::too_many_lines, reason = "one arm for each instruction")]
    fn run(
        &mut self,
        common: &Common,
        start: usize,
        end: usize,
        upto: Option<(usize, usize)>,
    ) -> Option<()> {
        let (mut here, at) = upto.unwrap_or((0, usize::MAX));
        let mut cursor = start;
        while cursor < end && cursor.wrapping_sub(start) < MOST_BYTES {
            let code = self.next(&mut cursor)?;
            let operand = usize::from(code & 0x3f);
            let mut advance = None;
            match (code & 0xc0, code) {
                (0x40, _) => advance = Some(operand),
                (0x80, _) => {
                    let distance = self.unsigned(&mut cursor)?.cast_signed();
                    self.set(operand, Rule::At(distance.wrapping_mul(common.data_align)));
                }
                (0xc0, _) => self.restore(operand),
                // Nothing, to fill a gap.
                (_, 0x00) => {}
                (_, 0x01) => here = self.encoded(&mut cursor, common.encoding)?,
                (_, 0x02) => advance = Some(usize::from(self.next(&mut cursor)?)),
                (_, 0x03) => {
                    advance = Some(usize::from(self.peek.u16(cursor)?));
                    cursor = cursor.wrapping_add(2);
                }
                (_, 0x04) => {
                    advance = Some(self.peek.u32(cursor)? as usize);
                    cursor = cursor.wrapping_add(4);
                }
                (_, 0x05 | 0x11 | 0x2f) => {
                    let register = self.unsigned(&mut cursor)?;
                    let distance = match code {
                        0x05 => self.unsigned(&mut cursor)?.cast_signed(),
                        0x11 => self.signed(&mut cursor)?,
                        _ => self.unsigned(&mut cursor)?.cast_signed().wrapping_neg(),
                    };
                    self.set(register, Rule::At(distance.wrapping_mul(common.data_align)));
                }
                (_, 0x06) => {
                    let register = self.unsigned(&mut cursor)?;
                    self.restore(register);
                }
                (_, 0x07) => {
                    let register = self.unsigned(&mut cursor)?;
                    self.set(register, Rule::Unknown);
                }
                (_, 0x08) => {
                    let register = self.unsigned(&mut cursor)?;
                    self.set(register, Rule::Same);
                }
                (_, 0x09) => {
                    let register = self.unsigned(&mut cursor)?;
                    let other = self.unsigned(&mut cursor)?;
                    self.set(register, Rule::In(other));
                }
                (_, 0x0a) => {
                    *self.kept.get_mut(self.kept_len)? = self.row;
                    self.kept_len += 1;
                }
                (_, 0x0b) => {
                    self.kept_len = self.kept_len.checked_sub(1)?;
                    self.row = *self.kept.get(self.kept_len)?;
                }
                (_, 0x0c | 0x12) => {
                    let register = self.unsigned(&mut cursor)?;
                    let distance = match code {
                        0x0c => self.unsigned(&mut cursor)?.cast_signed(),
                        _ => self.signed(&mut cursor)?.wrapping_mul(common.data_align),
                    };
                    self.row.frame = Some((register, distance));
                }
                (_, 0x0d) => {
                    let register = self.unsigned(&mut cursor)?;
                    self.row.frame = Some((register, self.row.frame?.1));
                }
                (_, 0x0e | 0x13) => {
                    let distance = match code {
                        0x0e => self.unsigned(&mut cursor)?.cast_signed(),
                        _ => self.signed(&mut cursor)?.wrapping_mul(common.data_align),
                    };
                    self.row.frame = Some((self.row.frame?.0, distance));
                }
                (_, 0x0f) => {
                    let len = self.unsigned(&mut cursor)?;
                    cursor = cursor.wrapping_add(len);
                    self.row.frame = None;
                }
                (_, 0x10 | 0x16) => {
                    let register = self.unsigned(&mut cursor)?;
                    let len = self.unsigned(&mut cursor)?;
                    cursor = cursor.wrapping_add(len);
                    self.set(register, Rule::Unknown);
                }
                (_, 0x14 | 0x15) => {
                    let register = self.unsigned(&mut cursor)?;
                    let distance = match code {
                        0x14 => self.unsigned(&mut cursor)?.cast_signed(),
                        _ => self.signed(&mut cursor)?,
                    };
                    self.set(register, Rule::Is(distance.wrapping_mul(common.data_align)));
                }
                // The size of the arguments, which concerns no register.
                (_, 0x2e) => {
                    self.unsigned(&mut cursor)?;
                }
                _ => return None,
            }
            if let Some(delta) = advance {
                here = here.wrapping_add(delta.wrapping_mul(common.code_align));
            }
            // What follows is about code behind the address.
            if upto.is_some() && here > at {
                break;
            }
        }
        Some(())
    }

    /// Sets the rule of a register. Those that are not followed, such as vectors, are left out.
    fn set(&mut self, register: usize, rule: Rule) {
        if let Some(old) = self.row.rules.get_mut(register) {
            *old = rule;
        }
    }

    fn restore(&mut self, register: usize) {
        if let Some(&rule) = self.first.rules.get(register) {
            self.set(register, rule);
        }
    }

    fn next(&mut self, cursor: &mut usize) -> Option<u8> {
        let byte = self.peek.u8(*cursor)?;
        *cursor = cursor.wrapping_add(1);
        Some(byte)
    }

    /// Reads an unsigned number of seven bits a byte (ULEB128).
    fn unsigned(&mut self, cursor: &mut usize) -> Option<usize> {
        let (mut number, mut shift) = (0_usize, 0);
        loop {
            let byte = self.next(cursor)?;
            number |= usize::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
    }

    /// Reads a signed number of seven bits a byte (SLEB128).
    fn signed(&mut self, cursor: &mut usize) -> Option<isize> {
        let (mut number, mut shift) = (0_usize, 0);
        loop {
            let byte = self.next(cursor)?;
            number |= usize::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                if byte & 0x40 != 0 && shift < usize::BITS {
                    number |= usize::MAX << shift;
                }
                return Some(number.cast_signed());
            }
        }
    }

    /// Reads an address in one of the encodings of these tables.
    fn encoded(&mut self, cursor: &mut usize, encoding: u8) -> Option<usize> {
        let at = *cursor;
        let (value, size) = match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => (self.peek.word(at)?, 8),
            0x03 => (self.peek.u32(at)? as usize, 4),
            0x0b => {
                let value = self.peek.u32(at)?.cast_signed();
                (0_usize.wrapping_add_signed(value as isize), 4)
            }
            _ => return None,
        };
        *cursor = at.wrapping_add(size);
        match encoding & 0x70 {
            0x00 => Some(value),
            // Relative to where it stands.
            0x10 => Some(at.wrapping_add(value)),
            _ => None,
        }
    }
}
