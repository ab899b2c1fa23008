/* A client that does what its arguments say, one after the other:
 *
 *   title=TEXT          overwrites its command line with TEXT and its environment with zeros, as setproctitle does
 *   fork                goes on in a forked child; the parent waits for it and ends like it
 *   spawn=NAME=VALUE    goes on in a child that is started anew, with this in its environment
 *   setenv=NAME=VALUE   sets a variable in this process, as os.environ does
 *   file=PATH           makes a file
 *   thread=PATH         makes a file, from another thread
 *   files=COUNT:PATH    makes several; a % in PATH is their number, as 8 hexadecimal digits
 *   rename=FROM:TO
 *   sleep=MILLISECONDS
 *   wait                says its id, and waits for a line
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char *first, *last;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/* argv and environ are one area; what is in use of it is moved away first. */
static char **take_over(char **list)
{
	int count = 0;
	while (list[count])
		count++;
	char **copy = calloc(count + 1, sizeof *copy);
	for (int i = 0; i < count; i++) {
		if (!first)
			first = list[i];
		last = list[i] + strlen(list[i]);
		copy[i] = strdup(list[i]);
	}
	return copy;
}

static void set_title(const char *text)
{
	size_t room = last - first, length = strlen(text);
	if (length > room)
		length = room;
	memset(first, 0, room);
	memcpy(first, text, length);
	prctl(PR_SET_NAME, text);
}

static void *make(void *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
	if (fd < 0 || write(fd, "kv", 2) != 2 || close(fd))
		fail(path);
	return NULL;
}

static void make_several(const char *text)
{
	char *pattern, path[4096];
	unsigned long count = strtoul(text, &pattern, 10);
	const char *at = strchr(++pattern, '%');
	for (unsigned long i = 0; i < count; i++) {
		snprintf(path, sizeof path, "%.*s%08lx%s", (int)(at - pattern), pattern, i, at + 1);
		make(path);
	}
}

static int ended(pid_t child)
{
	int status;
	if (child < 0 || waitpid(child, &status, 0) < 0)
		fail("child");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

static pid_t spawn(char **todo, char *variable)
{
	pid_t child = fork();
	if (child)
		return child;
	putenv(variable);
	*todo = "client";
	execv("/proc/self/exe", todo);
	fail("exec");
	return -1;
}

int main(int argc, char **argv)
{
	char **args = take_over(argv);
	environ = take_over(environ);
	/* Nothing that a test starts outlives it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)argc;
	for (char **todo = args + 1; *todo; todo++) {
		char *value = strchr(*todo, '=');
		size_t length = value ? (size_t)(value++ - *todo) : strlen(*todo);
		pid_t child;
		pthread_t thread;
		char *to;
#define IS(word) (length == strlen(word) && !strncmp(*todo, word, length))
		if (IS("title")) {
			set_title(value);
		} else if (IS("fork")) {
			if ((child = fork()))
				return ended(child);
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		} else if (IS("spawn")) {
			return ended(spawn(todo, value));
		} else if (IS("setenv")) {
			putenv(value);
		} else if (IS("file")) {
			make(value);
		} else if (IS("thread")) {
			if (pthread_create(&thread, NULL, make, value) || pthread_join(thread, NULL))
				fail("thread");
		} else if (IS("files")) {
			make_several(value);
		} else if (IS("rename")) {
			to = strchr(value, ':');
			*to++ = 0;
			if (rename(value, to))
				fail(value);
		} else if (IS("sleep")) {
			usleep(atoi(value) * 1000);
		} else if (IS("wait")) {
			printf("%d\n", getpid());
			fflush(stdout);
			while (getchar() != '\n')
				;
		} else {
			fprintf(stderr, "%s?\n", *todo);
			return 2;
		}
	}
	return 0;
}
