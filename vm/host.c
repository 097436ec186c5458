/*
 * See host.h. One libuv loop:
 *
 *     timerfd   the machine clock's next deadline (nanoseconds; re-armed by whichever thread arms an earlier
 * timer) stdin     to the guest's serial port; Ctrl-A commands when it is a terminal signals   SIGTERM,
 * SIGINT, SIGHUP end the machine async     a stop was requested, or the serial port has room for input again
 */
#include "vm/host_int.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "control/control.h"
#include "sandbox/jail.h"
#include "vm/channel.h"
#include "vm/devices.h"
#include "vm/gdb/server.h"
#include "vm/jail.h"
#include "vm/kernel.h"
#include "vm/machine.h"
#include "vm/output.h"
#include "vm/pc.h"
#include "vm/report.h"
#include "vm/saved/save.h"
#include "vm/terminal.h"

#define OUTPUT_DRAIN_MS 3000u
#define NS_PER_S        1000000000ull

static const int end_signals[HOST_END_SIGNALS] = {SIGTERM, SIGINT, SIGHUP};

/* --- time --- */

/* Any thread. */
static void arm_timer(void *opaque)
{
    struct host *host = opaque;
    pthread_mutex_lock(&host->timer_lock);
    uint64_t deadline = clock_next_deadline(host->clock), now = clock_now_ns(host->clock);
    struct itimerspec spec = {0}; /* all zero: disarmed */
    if (deadline != CLOCK_NEVER) {
        uint64_t wait = deadline > now ? deadline - now : 1;
        spec.it_value.tv_sec = (time_t)(wait / NS_PER_S);
        spec.it_value.tv_nsec = (long)(wait % NS_PER_S);
    }
    timerfd_settime(host->timer_fd, 0, &spec, NULL);
    pthread_mutex_unlock(&host->timer_lock);
}

void host_arm_timer(struct host *host)
{
    arm_timer(host);
}

static void on_timer(uv_poll_t *poll, int status, int events)
{
    struct host *host = poll->data;
    uint64_t expirations;
    if (read(host->timer_fd, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN) {
        log_warning("the timer's file descriptor: %s", strerror(errno));
    }
    mem_lock(host->mem);
    clock_run(host->clock);
    mem_unlock(host->mem);
    arm_timer(host);
}

static void on_timeout(uv_timer_t *timer)
{
    struct host *host = timer->data;
    machine_request_stop(host->machine, VM_STATUS_TIMEOUT);
}

static bool press_power_button(struct host *host)
{
    mem_lock(host->mem);
    bool heard = pc_power_button(machine_pc(host->machine));
    mem_unlock(host->mem);
    return heard;
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct host *host = handle->data;
    /* A guest that minds its power button gets the chance to shut down; whoever asks again means it. */
    if (number == SIGTERM && !host->term_seen) {
        host->term_seen = true;
        if (press_power_button(host)) {
            return;
        }
    }
    machine_request_stop(host->machine, VM_STATUS_KILLED);
}

/* --- output of the serial port and the console --- */

/* The virtio console's, on the main loop. */
static size_t on_console_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    struct host *host = opaque;
    return output_write(host->terminal, bytes, len);
}

/* Under mem_lock(). */
static size_t on_serial_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    struct host *host = opaque;
    size_t taken = host->serial ? output_write(host->serial, bytes, len) : len;
    if (host->channel) {
        channel_feed(host->channel, bytes, taken);
    }
    return taken;
}

/* The output's thread. */
static void on_serial_drained(void *opaque)
{
    struct host *host = opaque;
    mem_lock(host->mem);
    pc_serial_flush(machine_pc(host->machine));
    mem_unlock(host->mem);
}

/* The output's thread. */
static void on_terminal_room(void *opaque)
{
    struct host *host = opaque;
    if (host->console_on_terminal) {
        atomic_store(&host->output_room, true);
        uv_async_send(&host->async);
    } else {
        on_serial_drained(host);
    }
}

/* --- its input --- */

static void on_input(uv_poll_t *poll, int status, int events);

/* Under mem_lock(), any thread; the virtio console's on the main loop. */
static void on_serial_room(void *opaque)
{
    struct host *host = opaque;
    atomic_store(&host->input_wanted, true);
    uv_async_send(&host->async);
}

static void deliver_input(struct host *host)
{
    if (host->input_used == 0) {
        return;
    }
    size_t taken;
    if (host->console_on_terminal) {
        taken = ports_terminal_input(devices_ports(host->devices), host->input, host->input_used);
    } else {
        mem_lock(host->mem);
        taken = pc_serial_input(machine_pc(host->machine), host->input, host->input_used);
        mem_unlock(host->mem);
    }
    host->input_used -= taken;
    memmove(host->input, host->input + taken, host->input_used);
}

static void run_command(struct host *host, enum console_command command)
{
    switch (command) {
    case CONSOLE_QUIT: machine_request_stop(host->machine, VM_STATUS_KILLED); break;
    case CONSOLE_POWER:
        if (!press_power_button(host)) {
            fputs("\r\nfonda: the guest does not listen to its power button\r\n", stderr);
        }
        break;
    case CONSOLE_HELP: fputs(console_help, stderr); break;
    case CONSOLE_STATS: report_stats(stderr, host->machine); break;
    case CONSOLE_NONE: break;
    }
}

/* A terminal is read even when the guest does not take its bytes, as Ctrl-A X has to get through; what does
 * not fit is lost, as on a real serial line. */
static void take_terminal_bytes(struct host *host, const uint8_t *bytes, size_t len)
{
    uint8_t out[HOST_INPUT_BYTES + 1];
    while (len > 0) {
        size_t out_len;
        enum console_command command;
        size_t used = console_input(&host->console, bytes, len, out, &out_len, &command);
        size_t room = HOST_INPUT_BYTES - host->input_used;
        out_len = MIN(out_len, room);
        memcpy(host->input + host->input_used, out, out_len);
        host->input_used += out_len;
        run_command(host, command);
        bytes += used;
        len -= used;
    }
}

static void set_polling(struct host *host, bool on)
{
    if (!host->input_pollable || on == host->input_polling) {
        return;
    }
    host->input_polling = on;
    if (on) {
        uv_poll_start(&host->input_poll, UV_READABLE, on_input);
    } else {
        uv_poll_stop(&host->input_poll);
    }
}

static void read_input(struct host *host)
{
    uint8_t bytes[HOST_INPUT_BYTES];
    size_t want = host->input_is_terminal ? sizeof(bytes) : HOST_INPUT_BYTES - host->input_used;
    ssize_t n = read(host->input_fd, bytes, want);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n <= 0) {
        set_polling(host, false);
        host->input_fd = -1;
        return;
    }
    if (host->input_is_terminal) {
        take_terminal_bytes(host, bytes, (size_t)n);
    } else {
        memcpy(host->input + host->input_used, bytes, (size_t)n);
        host->input_used += (size_t)n;
    }
}

/* Moves bytes on as far as they go. A pipe is read only while there is room; a file is read here, without
 * polling. */
static void pump_input(struct host *host)
{
    deliver_input(host);
    while (host->input_fd >= 0 && !host->input_pollable && host->input_used == 0) {
        read_input(host);
        deliver_input(host);
    }
    if (host->input_fd >= 0) {
        set_polling(host, host->input_is_terminal || host->input_used < HOST_INPUT_BYTES);
    }
}

static void on_input(uv_poll_t *poll, int status, int events)
{
    struct host *host = poll->data;
    if (host->input_fd >= 0) {
        read_input(host);
    }
    pump_input(host);
}

/* --- stopping --- */

/* Any thread. */
static void on_stopping(void *opaque)
{
    struct host *host = opaque;
    atomic_store(&host->stop_wanted, true);
    uv_async_send(&host->async);
}

/* A vCPU's thread. */
static void on_debug_stopped(void *opaque)
{
    struct host *host = opaque;
    gdb_server_notify(host->gdb);
}

/* A vCPU that ignores its kick is a defect of the engine; the user gets the terminal back all the same. */
static _Noreturn void leave_vcpu_behind(int status)
{
    terminal_restore();
    log_error("a vCPU does not stop; leaving it behind");
    _exit(status);
}

static void forget_kernel(struct host *host, struct boot *boot)
{
    if (!host->config->kernel) {
        boot_forget(boot);
    }
}

/* A kernel from the disk is read anew at each start: the guest may have installed another one, and between
 * two starts it needs no memory. A restored machine has read none yet. */
static int renew_kernel(struct host *host)
{
    struct boot *boot;
    if (host->config->kernel && (host->boot || host->own_boot)) {
        return 0;
    }
    struct blk_node *disk = host->config->kernel ? NULL : devices_disk(host->devices, 0);
    int rc = kernel_open(host->config, disk, &boot, &host->err);
    if (rc < 0) {
        return err_prefix(&host->err, "the machine can't start again");
    }
    machine_set_boot(host->machine, boot);
    boot_free(host->own_boot);
    host->own_boot = boot;
    return 0;
}

static void stop(struct host *host)
{
    int status;
    if (machine_join(host->machine, &status) < 0) {
        leave_vcpu_behind(VM_STATUS_ENGINE);
    }
    host_save_cancel(host); /* what is being saved is no more, or comes to its end here */
    bool reset = status == MACHINE_RESET || status == MACHINE_WATCHDOG;
    bool again = reset && !host->config->no_reboot;
    bool readable = again && renew_kernel(host) == 0;
    if (again && !readable && host->config->restore && host->config->kernel) {
        log_warning("the machine was restored, and its kernel's files are not there: a reboot ends it");
        host->err = (struct err){0};
    } else if (again) {
        if (readable && machine_restart(host->machine, &host->err) == 0) {
            forget_kernel(host, host->own_boot);
            host_state_event(host);
            return;
        }
        status = VM_STATUS_HOST;
        reset = false;
    }
    if (reset) {
        status = status == MACHINE_WATCHDOG && !again ? VM_STATUS_WATCHDOG : VM_STATUS_OFF;
    }
    host->status = status;
    if (host->gdb) {
        gdb_server_ended(host->gdb, host->status);
    }
    uv_stop(&host->loop);
}

static void on_async(uv_async_t *async)
{
    struct host *host = async->data;
    if (atomic_exchange(&host->stop_wanted, false)) {
        stop(host);
    }
    if (atomic_exchange(&host->input_wanted, false)) {
        pump_input(host);
        if (host->channel) {
            channel_room(host->channel);
        }
    }
    if (atomic_exchange(&host->output_room, false)) {
        ports_terminal_room(devices_ports(host->devices));
    }
}

/* --- set-up --- */

static void tell_window_size(struct host *host)
{
    struct winsize size;
    if (host->console_on_terminal && ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
        ports_terminal_resize(devices_ports(host->devices), size.ws_col, size.ws_row);
    }
}

static void on_resized(uv_signal_t *handle, int number)
{
    tell_window_size(handle->data);
}

/* It is in raw mode already (main.c). */
static int open_terminal(struct host *host, struct err *err)
{
    host->input_fd = STDIN_FILENO;
    host->input_is_terminal = isatty(STDIN_FILENO);
    auto_close int fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot use the standard output");
    }
    int rc = output_new(fd, on_terminal_room, host, &host->terminal, err);
    if (rc == 0) {
        (void)take_fd(&fd);
    }
    return rc;
}

static int open_serial(struct host *host, struct err *err)
{
    const char *where = host->config->serial;
    if (strcmp(where, "none") == 0) {
        return 0;
    }
    if (strcmp(where, "stdio") == 0) {
        host->serial = host->terminal;
        return 0;
    }
    auto_close int fd = open(where, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        return err_sys(err, -errno, "--serial: cannot open '%s'", where);
    }
    int rc = output_new(fd, on_serial_drained, host, &host->serial, err);
    if (rc == 0) {
        (void)take_fd(&fd);
    }
    return rc;
}

static int open_outputs(struct host *host, struct err *err)
{
    bool used = host->console_on_terminal || strcmp(host->config->serial, "stdio") == 0;
    int rc = used ? open_terminal(host, err) : 0;
    return rc == 0 ? open_serial(host, err) : rc;
}

static int start_outputs(struct host *host, struct err *err)
{
    int rc = output_start(host->terminal, err);
    if (rc == 0 && host->serial != host->terminal) {
        rc = output_start(host->serial, err);
    }
    return rc < 0 ? rc : ports_start(devices_ports(host->devices), err);
}

static void close_outputs(struct host *host)
{
    if (host->serial != host->terminal) {
        output_free(host->serial, OUTPUT_DRAIN_MS);
    }
    output_free(host->terminal, OUTPUT_DRAIN_MS);
    host->serial = host->terminal = NULL;
}

static int open_loop(struct host *host, struct err *err)
{
    host->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (host->timer_fd < 0) {
        return err_sys(err, -errno, "cannot make a timer");
    }
    int rc = uv_async_init(&host->loop, &host->async, on_async);
    if (rc == 0) {
        rc = uv_poll_init(&host->loop, &host->timer_poll, host->timer_fd);
    }
    if (rc == 0) {
        rc = uv_poll_start(&host->timer_poll, UV_READABLE, on_timer);
    }
    if (rc == 0) {
        rc = uv_timer_init(&host->loop, &host->timeout);
    }
    if (rc == 0 && host->config->timeout_s > 0) {
        rc = uv_timer_start(&host->timeout, on_timeout, host->config->timeout_s * 1000, 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(end_signals) && rc == 0; i++) {
        uv_signal_init(&host->loop, &host->signals[i]);
        host->signals[i].data = host;
        rc = uv_signal_start(&host->signals[i], on_signal, end_signals[i]);
    }
    uv_signal_init(&host->loop, &host->resized);
    host->resized.data = host;
    if (rc == 0 && host->console_on_terminal) {
        rc = uv_signal_start(&host->resized, on_resized, SIGWINCH);
    }
    if (rc < 0) {
        return err_sys(err, rc, "cannot set up the main loop");
    }
    host->async.data = host->timer_poll.data = host->timeout.data = host->input_poll.data = host;
    /* Files and /dev/null can't be polled: they are read as the guest takes their bytes. */
    host->input_pollable =
        host->input_fd >= 0 && uv_poll_init(&host->loop, &host->input_poll, host->input_fd) == 0;
    clock_set_wake(host->clock, arm_timer, host);
    return 0;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

/* The machine's chips outlive the loop's last event and go first; the output last, with what they flushed. */
static void host_done(struct host *host)
{
    if (host->clock) {
        clock_set_wake(host->clock, NULL, NULL);
    }
    host_control_close(host);
    close_outputs(host);
    gdb_server_close(host->gdb);
    host_restore_done(host);
    machine_free(host->machine);
    devices_free(host->devices);
    uv_walk(&host->loop, close_handle, NULL);
    uv_run(&host->loop, UV_RUN_DEFAULT);
    uv_loop_close(&host->loop);
    gdb_server_free(host->gdb);
    if (host->timer_fd >= 0) {
        close(host->timer_fd);
    }
    clock_free(host->clock);
    boot_free(host->own_boot);
    terminal_restore();
    pthread_mutex_destroy(&host->timer_lock);
}

static int make_machine(struct host *host, const struct engine_ops *engine, struct boot *boot,
                        struct err *err)
{
    host->clock = clock_new_host();
    if (!host->clock) {
        return err_sys(err, -ENOMEM, "cannot make the machine's clock");
    }
    const struct machine_config config = {
        .engine = engine,
        .mem = host->mem,
        .clock = host->clock,
        .boot = boot,
        .cpus = (unsigned)host->config->cpus,
        .cpu_model = host->config->cpu_model,
        .code_cache_bytes = host->config->code_cache_bytes,
        .eager = host->config->eager,
        .tsc_hz = host->config->tsc_hz,
        .stopping = on_stopping,
        .serial_sink = on_serial_sink,
        .serial_room = on_serial_room,
        .debug_stopped = host->config->gdb ? on_debug_stopped : NULL,
        .opaque = host,
    };
    return machine_new(&config, &host->machine, err);
}

/* Whether a person wants to see where the guest was. */
static bool wants_report(int status)
{
    return status == VM_STATUS_SHUTDOWN || status == VM_STATUS_KILLED || status == VM_STATUS_ENGINE ||
           status == VM_STATUS_HALTED || status == VM_STATUS_TIMEOUT;
}

static void report_end(struct host *host)
{
    output_drain(host->serial, OUTPUT_DRAIN_MS); /* makes room for what the serial port still holds */
    mem_lock(host->mem);
    pc_serial_flush(machine_pc(host->machine));
    mem_unlock(host->mem);
    close_outputs(host);
    terminal_restore();
    if (host->err.code) {
        log_error("%s", host->err.text);
    }
    if (wants_report(host->status)) {
        report_guest(stderr, host->machine, host->status);
    } else if (host->status == VM_STATUS_PANIC) {
        fprintf(stderr, "\nfonda: the guest ended: its kernel panicked\n");
    }
    if (host->config->stats) {
        report_stats(stderr, host->machine);
    }
}

int host_run(const struct vm_config *config, const struct engine_ops *engine, struct boot *boot,
             struct mem *mem, struct saved_reader *saved, struct err *err)
{
    struct host host = {.config = config,
                        .engine = engine,
                        .boot = boot,
                        .mem = mem,
                        .timer_fd = -1,
                        .input_fd = -1,
                        .status = VM_STATUS_HOST};
    pthread_mutex_init(&host.timer_lock, NULL);
    uv_loop_init(&host.loop);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ,
           SIG_IGN); /* a disk's write beyond ulimit -f then fails with EFBIG, for the guest to see */
    host.console_on_terminal = vm_config_console_on_terminal(config);
    int rc = open_outputs(&host, err);
    if (rc < 0) {
        host_done(&host);
        return VM_STATUS_USAGE;
    }
    rc = make_machine(&host, engine, boot, err);
    if (rc < 0) {
        host_done(&host);
        return rc == -EINVAL ? VM_STATUS_USAGE : VM_STATUS_ENGINE;
    }
    rc = open_loop(&host, err);
    if (rc == 0) {
        const struct ports_terminal terminal = {on_console_sink, on_serial_room, &host};
        rc = devices_new(config, &host.loop, mem, host.machine, &terminal, &host.devices, err);
        if (rc < 0) {
            host_done(&host);
            return VM_STATUS_USAGE;
        }
        pc_reset(machine_pc(host.machine)); /* with the devices in their slots */
    }
    if (rc == 0 && config->gdb) {
        rc = gdb_server_new(config->gdb, config->gdb_wait, &host.loop, host.machine, mem, &host.gdb, err);
        if (rc < 0) {
            host_done(&host);
            return VM_STATUS_USAGE;
        }
    }
    if (rc == 0) {
        rc = host_control_open(&host, err);
        if (rc < 0) {
            host_done(&host);
            return VM_STATUS_USAGE;
        }
    }
    if (rc == 0) {
        devices_rest(host.devices);
        rc = vm_jail_enter(config, err);
    }
    if (rc == 0) {
        rc = start_outputs(&host, err);
    }
    if (rc == 0) {
        rc = config->restore ? host_restore(&host, saved, err) : machine_start(host.machine, err);
    }
    if (rc == 0) {
        if (boot) {
            forget_kernel(&host, boot);
        }
        host_state_event(&host);
        arm_timer(&host);
        tell_window_size(&host);
        pump_input(&host);
        uv_run(&host.loop, UV_RUN_DEFAULT);
        report_end(&host);
    }
    if (rc == -EBADMSG || rc == -EINVAL) {
        host.status = VM_STATUS_USAGE; /* a file that can't be restored */
    }
    host_done(&host);
    if (host.again) {
        rc = jail_again(host.again); /* by the supervisor, which is outside */
        rc = rc == -ENOSYS ? snapshot_start_again(config, host.again, err) : rc;
        return rc < 0 ? VM_STATUS_HOST : host.status;
    }
    return host.status;
}
