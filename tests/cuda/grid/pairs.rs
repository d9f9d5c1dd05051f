//! Covering tables: few rows in which every pair of values of two options occurs, made by a greedy generator. The same seed gives the same table.

/// Numbers from a seed, by splitmix64.
#[derive(Debug, Clone)]
pub struct Draw(pub u64);

impl Draw {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.bits() % count as u64) as usize
    }
}

/// A row that is not finished: the value of each option that is decided.
pub type Partial = [Option<usize>];

/// The options: how many values each has, and which rows there can be. `may` is asked about rows in which some are still open, and says
/// no only where no choice of these would help.
pub struct Options<'a> {
    pub values: &'a [usize],
    pub may: &'a dyn Fn(&Partial) -> bool,
}

impl Options<'_> {
    /// All options decided, those that are open now by `choose`, with a way back where none fits; None where there is no way.
    fn finish(&self, row: &mut Vec<Option<usize>>, open: &[usize], choose: &mut dyn FnMut(&Partial, usize) -> Vec<usize>) -> bool {
        let Some((&option, rest)) = open.split_first() else { return true };
        for value in choose(row, option) {
            row[option] = Some(value);
            if (self.may)(row) && self.finish(row, rest, choose) {
                return true;
            }
            row[option] = None;
        }
        false
    }

    /// Whether some row has all of these values.
    fn exists(&self, given: &[(usize, usize)]) -> bool {
        let mut row = vec![None; self.values.len()];
        given.iter().for_each(|&(option, value)| row[option] = Some(value));
        let open: Vec<usize> = (0..row.len()).filter(|&o| row[o].is_none()).collect();
        (self.may)(&row) && self.finish(&mut row, &open, &mut |_, option| (0..self.values[option]).collect())
    }

    /// Every pair of values of two options that some row has.
    fn pairs(&self) -> Vec<[(usize, usize); 2]> {
        let mut pairs = Vec::new();
        for one in 0..self.values.len() {
            for other in one + 1..self.values.len() {
                let all = (0..self.values[one]).flat_map(|a| (0..self.values[other]).map(move |b| [(one, a), (other, b)]));
                pairs.extend(all.filter(|pair| self.exists(pair)));
            }
        }
        pairs
    }

    /// Rows that have every pair.
    pub fn table(&self, seed: u64) -> Vec<Vec<usize>> {
        let (mut draw, mut missing, mut rows) = (Draw(seed), self.pairs(), Vec::new());
        while let Some(first) = missing.first().copied() {
            let mut row = vec![None; self.values.len()];
            first.iter().for_each(|&(option, value)| row[option] = Some(value));
            let mut open: Vec<usize> = (0..row.len()).filter(|&o| row[o].is_none()).collect();
            for i in (1..open.len()).rev() {
                open.swap(i, draw.below(i + 1));
            }
            let done = self.finish(&mut row, &open, &mut |row, option| {
                // The value with most pairs that are still missing comes first; equal ones in a drawn order.
                let gain = |value: usize| {
                    let has = |(o, v): (usize, usize)| if o == option { v == value } else { row[o] == Some(v) };
                    missing.iter().filter(|pair| pair.iter().any(|&(o, _)| o == option) && pair.iter().all(|&p| has(p))).count()
                };
                let mut order: Vec<_> = (0..self.values[option]).map(|v| (usize::MAX - gain(v), draw.bits(), v)).collect();
                order.sort_unstable();
                order.into_iter().map(|(.., value)| value).collect()
            });
            assert!(done, "a pair that some row has leads to one");
            let row: Vec<usize> = row.into_iter().map(|v| v.expect("every option is decided")).collect();
            missing.retain(|pair| !pair.iter().all(|&(o, v)| row[o] == v));
            rows.push(row);
        }
        rows
    }

    /// How many pairs there are, those that no row can have, and those that these rows do not have.
    pub fn missing(&self, rows: &[Vec<usize>]) -> (usize, usize, Vec<[(usize, usize); 2]>) {
        let pairs = self.pairs();
        let (count, mut all) = (pairs.len(), 0);
        for one in 0..self.values.len() {
            all += (one + 1..self.values.len()).map(|other| self.values[one] * self.values[other]).sum::<usize>();
        }
        let absent = pairs.into_iter().filter(|pair| !rows.iter().any(|row| pair.iter().all(|&(o, v)| row[o] == v))).collect();
        (count, all - count, absent)
    }
}

#[test]
fn a_small_table_has_every_pair() {
    // Value 0 of the first option forbids value 2 of the last one.
    let may = |row: &Partial| !(row[0] == Some(0) && row[3] == Some(2));
    let options = Options { values: &[2, 3, 2, 4], may: &may };
    let table = options.table(1);
    assert_eq!(table, options.table(1));
    let (count, impossible, absent) = options.missing(&table);
    assert_eq!((count, impossible, absent.len()), (6 + 4 + 8 + 6 + 12 + 8 - 1, 1, 0));
    assert!(table.len() <= 18, "{} rows for at least 12", table.len());
    assert!(!options.missing(&table[1..]).2.is_empty(), "a table without a row lacks something");
}
