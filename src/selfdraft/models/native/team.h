// Threads that work on one call together and meet at barriers.
//
// They live for one call only: starting them takes some microseconds of a forward's milliseconds, an idle process then has none that
// wait, and a process that was forked needs no care.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

class Team {
  public:
    explicit Team(int size) : size(size) {}
    const int size;

    // Call work(rank) in every thread; rank 0 is the caller's.
    template <class Work>
    void run(const Work& work) {
        std::vector<std::thread> others;
        for (int rank = 1; rank < size; rank++) others.emplace_back([&work, rank] { work(rank); });
        work(0);
        for (auto& other : others) other.join();
    }

    // Wait until every thread has come here.
    void meet() {
        if (size == 1) return;
        const int round = rounds.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived.store(0, std::memory_order_relaxed);
            rounds.store(round + 1, std::memory_order_release);
            return;
        }
        // The others need microseconds, unless somebody else has their core: then they should get this one.
        for (int spins = 0; rounds.load(std::memory_order_acquire) == round; spins++)
            if (spins > 20000) std::this_thread::yield();
    }

  private:
    std::atomic<int> arrived{0}, rounds{0};
};

// The share of `rank` in `count` pieces of work: [first, end).
struct Share {
    int64_t first, end;
    Share(int64_t count, int rank, int size) : first(count * rank / size), end(count * (rank + 1) / size) {}
};
