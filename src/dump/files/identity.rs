//! Finding out which of many things are the same, by an order that can fail.
//!
//! kcmp(2) orders kernel objects without naming them. The functions here know nothing of what is
//! compared.

use std::cmp::Ordering;

/// Gives each item the number of the class of equal items it belongs to. Classes are numbered in
/// the order of their first members, and `compare` is called about `n log m` times for `n` items in
/// `m` classes.
pub fn number_classes<Item, Error>(
    items: &[Item],
    mut compare: impl FnMut(&Item, &Item) -> Result<Ordering, Error>,
) -> Result<Vec<usize>, Error> {
    // Representatives of the classes found so far, in the order of `compare`: the number of the
    // class, and its first member.
    let mut sorted: Vec<(usize, &Item)> = Vec::new();
    let mut numbers = Vec::with_capacity(items.len());
    for item in items {
        let number = match search(&sorted, |(_, other)| compare(other, item))? {
            Ok(found) => sorted[found].0,
            Err(place) => {
                let number = sorted.len();
                sorted.insert(place, (number, item));
                number
            }
        };
        numbers.push(number);
    }
    Ok(numbers)
}

/// Binary search: the place where `compare` says equal, or else the place to insert at.
fn search<Item, Error>(
    sorted: &[Item],
    mut compare: impl FnMut(&Item) -> Result<Ordering, Error>,
) -> Result<Result<usize, usize>, Error> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match compare(&sorted[middle])? {
            Ordering::Less => low = middle + 1,
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_items_share_a_number_in_order_of_appearance() {
        let compare = |a: &i32, b: &i32| Ok::<_, ()>(a.cmp(b));
        assert_eq!(number_classes(&[5, 1, 5, 9, 1, 3], compare), Ok(vec![0, 1, 0, 2, 1, 3]));
        assert_eq!(number_classes(&[], compare), Ok(vec![]));
    }

    #[test]
    fn failures_come_through() {
        let mut calls = 0;
        let result = number_classes(&[1, 2, 3], |_, _| {
            calls += 1;
            if calls == 2 { Err("gone") } else { Ok(Ordering::Less) }
        });
        assert_eq!(result, Err("gone"));
    }
}
