//! In which order the runtimes of a round take their turns. Pure.

/// The order of `count` runtimes in a round, as their indexes. In `count` rounds, or twice as many if `count` is
/// odd, each runtime follows each other one equally often within a round (Williams, "Experimental designs balanced
/// for the estimation of residual effects of treatments", 1949).
pub fn order(round: usize, count: usize) -> Vec<usize> {
    // 0, 1, count - 1, 2, count - 2, …: all differences between neighbours are distinct modulo count.
    let zigzag = (0..count).map(|position| {
        if position % 2 == 1 {
            position.div_ceil(2)
        } else {
            count - position / 2
        }
    });
    let mut order: Vec<usize> = zigzag.map(|index| (index + round) % count).collect();
    if count % 2 == 1 && (round / count) % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_runtime_follows_each_other_one_equally_often() {
        for count in 3..=5 {
            let mut followers = std::collections::BTreeMap::new();
            for round in 0..2 * count {
                let order = order(round, count);
                for pair in order.windows(2) {
                    *followers.entry((pair[0], pair[1])).or_insert(0) += 1;
                }
                let distinct: std::collections::BTreeSet<usize> = order.into_iter().collect();
                assert_eq!(distinct, (0..count).collect());
            }
            assert_eq!(followers.len(), count * (count - 1), "{followers:?}");
            assert!(followers.values().all(|&times| times == 2), "{followers:?}");
        }
    }
}
