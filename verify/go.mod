module github.com/toppira/authctl/verify

go 1.26.6
