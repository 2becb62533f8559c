import numpy as np, time
def view(items, channels, seconds):
    out=[];spec=[]
    now=time.monotonic_ns(); fs=430.0
    n=int(seconds*fs); t=np.arange(n)/fs; rng=np.random.default_rng()
    for ch,angle in ((1,0),(2,90)):
        k=5; idx=np.arange(n); ph=((idx//k)%2); 
        v=0.1+0.25*ph*(1 if ch==2 else 2)+0.01*np.sin(2*np.pi*50.1*t)+0.004*np.sin(2*np.pi*100.2*t)+rng.normal(0,0.002,n)
        phase=ph.copy(); phase[idx%k==0]=2
        out.append(dict(channel=ch,angle=angle,rate_hz=fs,t_ns=(now-(n-idx)*1e9/fs).astype(int).tolist(),volts=v.tolist(),phase=phase.tolist()))
        for p in (0,1):
            m=phase==p; x=np.interp(t,t[m],v[m]); x=x-x.mean(); w=np.hanning(n)
            X=np.abs(np.fft.rfft(x*w))/w.sum()*2; hz=np.fft.rfftfreq(n,1/fs)
            spec.append(dict(channel=ch,phase=p,hz=hz.tolist(),volts=X.tolist()))
    return dict(channels=out,spectrum=spec)
