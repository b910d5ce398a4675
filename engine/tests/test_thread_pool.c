/* test_thread_pool.c: shares cover everything once, barriers hold, and pools of any size start and
 * stop. */
#include <time.h>

#include "platform/platform.h"
#include "random_model.h"
#include "runtime/thread_pool.h"
#include "runtime/thread_tuner.h"

#define MAX_WORKERS 8
#define PHASES 500

typedef struct {
    /* Plain integers: only the barrier orders them, which ThreadSanitizer checks. */
    int written[MAX_WORKERS];
    int wrong[MAX_WORKERS];
    int calls;
} phases;

static void phase_worker(void *argument, worker w) {
    phases *p = argument;
    if (w.index == 0) p->calls++;
    for (int phase = 1; phase <= PHASES; phase++) {
        p->written[w.index] = phase;
        thread_pool_barrier(w);
        for (int i = 0; i < w.count; i++) p->wrong[w.index] += p->written[i] != phase;
        thread_pool_barrier(w);
    }
}

static void test_barriers(void) {
    for (int count = 1; count <= MAX_WORKERS; count = count < 4 ? count + 1 : count * 2) {
        thread_pool *pool = thread_pool_create(count);
        CHECK(pool && thread_pool_size(pool) == count, "a pool of %d", count);
        phases p = {0};
        for (int run = 0; run < 5; run++) thread_pool_run(pool, count, phase_worker, &p);
        for (int workers = 1; workers <= count; workers++) thread_pool_run(pool, workers, phase_worker, &p);
        CHECK(p.calls == 5 + count, "%d calls", p.calls);
        for (int i = 0; i < count; i++)
            CHECK(p.wrong[i] == 0, "worker %d of %d saw %d values of other phases", i, count, p.wrong[i]);
        thread_pool_free(pool);
    }
    thread_pool_free(NULL);
}

/* Workers that fell asleep between two runs wake up for the next one and meet at its barriers. */
static void test_waking(void) {
    thread_pool *pool = thread_pool_create(4);
    phases p = {0};
    for (int run = 0; run < 5; run++) {
        const struct timespec rest = {0, 20 * 1000 * 1000};
        nanosleep(&rest, NULL);
        thread_pool_run(pool, 2 + run % 3, phase_worker, &p);
    }
    CHECK(p.calls == 5 && p.wrong[0] + p.wrong[1] + p.wrong[2] + p.wrong[3] == 0, "%d calls", p.calls);
    thread_pool_free(pool);
}

static void test_leave_processors(void) {
    int all[4096], current = platform_current_processor();
    for (int i = 0; i < 4096; i++) all[i] = i - 1;
    CHECK(!platform_leave_processors(all, 4096), "left all processors");
    const int available = platform_num_processors();
    bool moved = false;
    /* Repeated, because the system may move the thread back at any time. */
    for (int i = 0; i < 100 && !moved && current >= 0; i++) {
        current = platform_current_processor();
        moved = platform_leave_processors(&current, 1) && platform_current_processor() != current;
    }
    CHECK(moved || available == 1 || current < 0, "still on processor %d", current);
    CHECK(platform_num_processors() == available, "%d processors instead of %d", platform_num_processors(), available);
}

static void test_share(void) {
    for (int count = 1; count <= 7; count++)
        for (int64_t total = 0; total < 200; total++)
            for (int64_t unit = 1; unit <= 32; unit *= 2) {
                int64_t expected_begin = 0, begin, end;
                for (int i = 0; i < count; i++) {
                    thread_pool_share((worker){NULL, i, count}, total, unit, &begin, &end);
                    CHECK(begin == expected_begin && end >= begin, "part %d of %d: [%d, %d)", i, count, (int)begin,
                          (int)end);
                    CHECK(end % unit == 0 || end == total, "part %d of %d ends within a unit", i, count);
                    CHECK(end - begin <= (total / unit + count) / count * unit + unit, "part %d of %d is too large", i,
                          count);
                    expected_begin = end;
                }
                CHECK(expected_begin == total, "%d of %d shared", (int)expected_begin, (int)total);
            }
}

/* Seconds of a pass on this many threads. */
static double disturbed_seconds(int num_threads, int pass) {
    return num_threads > 1 && pass % 3 == 0 ? 20.0 : 3.0 / num_threads;
}
static double quiet_seconds(int num_threads, int pass) { return (3.0 + 0.2 * (pass % 5)) / num_threads; }

static void test_thread_tuner(void) {
    thread_tuner p;
    thread_tuner_init(&p, 4);
    for (int pass = 0; pass < 2000; pass++) {
        CHECK(p.num_threads == 4, "pass %d of a quiet machine on %d threads", pass, p.num_threads);
        thread_tuner_record(&p, quiet_seconds(p.num_threads, pass));
    }
    int on_all = 0;
    for (int pass = 0; pass < 4000; pass++) {
        on_all += p.num_threads == 4;
        thread_tuner_record(&p, disturbed_seconds(p.num_threads, pass));
    }
    CHECK(on_all < 400, "%d of 4000 disturbed passes on all threads", on_all);
    for (int pass = 0; pass < 8000; pass++) thread_tuner_record(&p, quiet_seconds(p.num_threads, pass));
    CHECK(p.num_threads == 4, "back on %d threads", p.num_threads);
}

int main(void) {
    CHECK(platform_num_processors() >= 1 && platform_num_processors() < 100000, "%d processors",
          platform_num_processors());
    test_share();
    test_barriers();
    test_waking();
    test_leave_processors();
    test_thread_tuner();
    /* Pools that stop before they run anything. */
    for (int i = 0; i < 200; i++) thread_pool_free(thread_pool_create(1 + i % 4));
    return check_failures();
}
