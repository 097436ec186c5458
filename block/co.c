/*
 * Coroutines: they let a format's request be written as one function, top to bottom, although it waits for
 * the host in between. Neighbour: loop.c, which resumes them.
 *
 * 1. Stacks are mapped with a guard page below, reused, and belong to one thread.
 * 2. A coroutine is entered by co_resume() only, and gives the stack back to whoever resumed it. Resumes
 *    may nest.
 * 3. The switch saves what the System V ABI (x86-64, 3.2.1) has a called function preserve; the
 *    floating-point control words are the same throughout the project.
 */
#include <errno.h>
#include <sys/mman.h>

#include "block/block_provider.h"

#if defined(__SANITIZE_ADDRESS__)
#define CO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#endif
#ifdef CO_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#define CO_TSAN 1
#include <sanitizer/tsan_interface.h>
#endif

/* A chain of BLK_CHAIN_MAX images nests about 1 KiB deep each; sanitizers multiply that. Touched pages only
 * count. */
#define CO_STACK_BYTES (512 * KiB)
#define CO_GUARD_BYTES 4096u
#define CO_IDLE_MAX    64u

struct co {
    void *sp; /* while suspended */
    void *resumer_sp;
    struct co *resumer;
    void (*fn)(void *arg);
    void *arg;
    bool idle; /* fn returned */
    uint8_t *map;
    struct co *next; /* in the idle list or a co_queue */
#ifdef CO_ASAN
    void *fake_stack, *resumer_fake_stack;
    const void *resumer_bottom;
    size_t resumer_size;
#endif
#ifdef CO_TSAN
    void *fiber, *resumer_fiber;
#endif
};

static _Thread_local struct co *current;
static _Thread_local struct co *idle_list;
static _Thread_local unsigned idle_count;

#if !defined(__x86_64__)
#error "co.c switches stacks on x86-64 only"
#endif

void co_switch_(void **save_sp, void *load_sp) __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".globl co_switch_\n"
        ".hidden co_switch_\n"
        ".type co_switch_, @function\n"
        "co_switch_:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size co_switch_, . - co_switch_\n");

/* The running coroutine's first step on its stack after a switch to it. */
static void arrived(struct co *co)
{
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(co->fake_stack, &co->resumer_bottom, &co->resumer_size);
#else
    (void)co;
#endif
}

static void leave(struct co *co)
{
    current = co->resumer;
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(&co->fake_stack, co->resumer_bottom, co->resumer_size);
#endif
#ifdef CO_TSAN
    __tsan_switch_to_fiber(co->resumer_fiber, 0);
#endif
    co_switch_(&co->sp, co->resumer_sp);
    arrived(co);
}

static void co_main(void)
{
    struct co *co = current;
    arrived(co);
    for (;;) {
        co->fn(co->arg);
        co->idle = true;
        leave(co);
    }
}

static struct co *co_new(void)
{
    struct co *co = idle_list;
    if (co) {
        idle_list = co->next;
        idle_count--;
        return co;
    }
    co = calloc(1, sizeof(*co));
    if (!co) {
        return NULL;
    }
    co->map =
        mmap(NULL, CO_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (co->map == MAP_FAILED) {
        free(co);
        return NULL;
    }
    if (mprotect(co->map, CO_GUARD_BYTES, PROT_NONE) < 0) {
        munmap(co->map, CO_STACK_BYTES);
        free(co);
        return NULL;
    }
    /* Six saved registers, the address that co_switch_ returns to, and one word so that co_main starts with
     * the alignment of a called function. */
    void **top = (void **)(void *)(co->map + CO_STACK_BYTES) - 10;
    top[6] = (void *)co_main;
    co->sp = top;
#ifdef CO_TSAN
    co->fiber = __tsan_create_fiber(0);
#endif
    return co;
}

static void co_free(struct co *co)
{
#ifdef CO_TSAN
    __tsan_destroy_fiber(co->fiber);
#endif
    munmap(co->map, CO_STACK_BYTES);
    free(co);
}

int co_start(void (*fn)(void *arg), void *arg)
{
    struct co *co = co_new();
    if (!co) {
        return -ENOMEM;
    }
    co->fn = fn;
    co->arg = arg;
    co->idle = false;
    co_resume(co);
    return 0;
}

void co_resume(struct co *co)
{
    co->resumer = current;
    current = co;
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(&co->resumer_fake_stack, co->map + CO_GUARD_BYTES,
                                   CO_STACK_BYTES - CO_GUARD_BYTES);
#endif
#ifdef CO_TSAN
    co->resumer_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(co->fiber, 0);
#endif
    co_switch_(&co->resumer_sp, co->sp);
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(co->resumer_fake_stack, NULL, NULL);
#endif
    if (!co->idle) {
        return;
    }
    if (idle_count < CO_IDLE_MAX) {
        co->next = idle_list;
        idle_list = co;
        idle_count++;
    } else {
        co_free(co);
    }
}

void co_trim(void)
{
    while (idle_list) {
        struct co *co = idle_list;
        idle_list = co->next;
        co_free(co);
    }
    idle_count = 0;
}

struct co *co_self(void)
{
    return current;
}

void co_suspend(void)
{
    leave(current);
}

void co_queue_push(struct co_queue *queue, struct co *co)
{
    co->next = NULL;
    *queue->tail = co;
    queue->tail = &co->next;
}

struct co *co_queue_pop(struct co_queue *queue)
{
    struct co *co = queue->head;
    if (co) {
        queue->head = co->next;
        if (!queue->head) {
            queue->tail = &queue->head;
        }
    }
    return co;
}

void co_queue_init(struct co_queue *queue)
{
    queue->head = NULL;
    queue->tail = &queue->head;
}

void co_queue_wait(struct co_queue *queue, struct blk_loop *loop)
{
    if (!current) {
        blk_loop_poll(loop, -1);
        return;
    }
    co_queue_push(queue, current);
    co_suspend();
}

void co_queue_wake_all(struct co_queue *queue, struct blk_loop *loop)
{
    struct co *co;
    while ((co = co_queue_pop(queue))) {
        blk_loop_wake(loop, co);
    }
}

void co_mutex_init(struct co_mutex *mutex, struct blk_loop *loop)
{
    mutex->locked = false;
    mutex->loop = loop;
    co_queue_init(&mutex->waiters);
}

void co_mutex_lock(struct co_mutex *mutex)
{
    if (mutex->locked && current) {
        co_queue_push(&mutex->waiters, current);
        co_suspend();
        return; /* co_mutex_unlock() handed it over */
    }
    while (mutex->locked) {
        blk_loop_poll(mutex->loop, -1);
    }
    mutex->locked = true;
}

void co_mutex_unlock(struct co_mutex *mutex)
{
    struct co *co = co_queue_pop(&mutex->waiters);
    if (co) {
        blk_loop_wake(mutex->loop, co);
    } else {
        mutex->locked = false;
    }
}
