// Threads that work on one call together and meet at barriers.
//
// A decoding step makes several calls, and starting a thread takes as long as a small product (150 microseconds, measured on a virtual
// machine). So threads stay when a call ends. They wait actively for the next one for a while, then they sleep.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

// The threads of this process that help its calls, one call at a time.
class Helpers {
  public:
    // Those of this process, for one call; null while another thread's call has them. Give them back with `release`.
    static Helpers* taken() {
        // Never deleted: its threads use it until the process ends.
        static std::atomic<Helpers*> current{nullptr};
        Helpers* found = current.load(std::memory_order_acquire);
        if (!found || found->process != getpid()) {  // a forked process has its parent's object, but not its threads
            Helpers* made = new Helpers;
            if (current.compare_exchange_strong(found, made)) found = made;
            else delete made;
        }
        return found->busy.exchange(true, std::memory_order_acquire) ? nullptr : found;
    }

    void release() { busy.store(false, std::memory_order_release); }

    // Call job(1), …, job(count) in as many helpers and job(0) in this thread; return when all are done.
    void run(int count, const std::function<void(int)>& job) {
        for (; started < count; started++) std::thread(&Helpers::help, this, started + 1, call.load()).detach();
        work = &job;
        left.store(count, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(sleep);  // a helper either sees the call before it sleeps, or is woken
            call.store(((call.load() >> BITS) + 1) << BITS | count, std::memory_order_release);
        }
        if (sleepers.load() > 0) wake.notify_all();
        job(0);
        for (int spins = 0; left.load(std::memory_order_acquire) > 0; spins++)
            if (spins > 20000) std::this_thread::yield();
    }

  private:
    static constexpr int BITS = 16;

    // Do this helper's part of every call that needs it.
    void help(int rank, int64_t seen) {
        for (;;) {
            const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);  // longer than a step's Python takes
            for (int spins = 1; call.load(std::memory_order_acquire) == seen; spins++) {
                if (spins % 64) continue;
                std::this_thread::yield();  // so that others get this core if they need it
                if (std::chrono::steady_clock::now() < until) continue;
                std::unique_lock<std::mutex> lock(sleep);
                sleepers.fetch_add(1);
                wake.wait(lock, [&] { return call.load() != seen; });
                sleepers.fetch_sub(1);
            }
            seen = call.load(std::memory_order_acquire);
            if (rank > (seen & ((1 << BITS) - 1))) continue;  // this call needs fewer, and may be over already
            (*work)(rank);
            left.fetch_sub(1, std::memory_order_release);
        }
    }

    const pid_t process = getpid();
    std::atomic<bool> busy{false};
    std::atomic<int64_t> call{0};  // its number, and in the lowest bits how many helpers it needs: both change at once
    std::atomic<int> left{0}, sleepers{0};
    std::mutex sleep;
    std::condition_variable wake;
    const std::function<void(int)>* work = nullptr;
    int started = 0;
};

class Team {
  public:
    explicit Team(int size) : size(size) {}
    const int size;

    // Call work(rank) in every thread; rank 0 is the caller's.
    template <class Work>
    void run(const Work& work) {
        if (size == 1) return work(0);
        const std::function<void(int)> job = [&work](int rank) { work(rank); };
        if (Helpers* helpers = Helpers::taken()) {
            helpers->run(size - 1, job);
            helpers->release();
            return;
        }
        std::vector<std::thread> others;  // for two calls at the same time
        for (int rank = 1; rank < size; rank++) others.emplace_back(job, rank);
        job(0);
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
